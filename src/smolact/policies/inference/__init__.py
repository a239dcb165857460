"""What all engines share: packed weights, a decoder layer and a vision tower on them, and CUDA graphs."""
