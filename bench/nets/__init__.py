"""The four nets of the paper's claim: fully connected, ResNet, MobileNet-style and a small transformer encoder."""
