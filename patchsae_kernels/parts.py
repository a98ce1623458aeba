"""What those need who build on the ops rather than call them: public, as the names of `patchsae_kernels` are.

`add_in_order_` adds up entries in their order, whatever runs; `attached` gives latents chosen elsewhere the gradients
of an encode; `differentiable_once` makes a second derivative an error; `finite_rows` names the first row that is not
finite; `products_as_said_by` gives PyTorch's products the precision of an op; `spend` takes the time of the CPU's
narrowest products; `interpreted` says whether Triton's interpreter runs what would run on a GPU.
"""

from patchsae_kernels.arithmetic import as_said_by as products_as_said_by
from patchsae_kernels.attached import attached
from patchsae_kernels.checks import finite_rows
from patchsae_kernels.cpu.peak import spend
from patchsae_kernels.once import differentiable_once
from patchsae_kernels.reference import add_in_order_
from patchsae_kernels.servers import interpreted

__all__ = [
    "add_in_order_",
    "attached",
    "differentiable_once",
    "finite_rows",
    "interpreted",
    "products_as_said_by",
    "spend",
]
