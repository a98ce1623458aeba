"""One file per dataset layout. To add one, add a file here that ends in

    LAYOUT = Layout(name=..., looks_for=..., matches=..., splits=..., open=...)

`patchsae.data.open` finds every file of this folder; nothing else needs to change.
"""
