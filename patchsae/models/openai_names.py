"""OpenAI's CLIPs by the names of Hugging Face's conversions; apart, because reading a SAE needs no open_clip."""

# Hugging Face's name -> open_clip's name of the same weights, with the tag "openai"
OPENAI = {
    "openai/clip-vit-base-patch16": "ViT-B-16-quickgelu",
    "openai/clip-vit-base-patch32": "ViT-B-32-quickgelu",
    "openai/clip-vit-large-patch14": "ViT-L-14-quickgelu",
    "openai/clip-vit-large-patch14-336": "ViT-L-14-336-quickgelu",
}
