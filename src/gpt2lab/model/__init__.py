"""GPT-2 as plain PyTorch: configuration, attention kernels, the network, its loss, its cost in operations."""
