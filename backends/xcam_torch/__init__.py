"""The PyTorch backend: activations and gradients for a named layer of a torch.nn.Module."""
