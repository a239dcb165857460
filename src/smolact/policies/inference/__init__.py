"""What the engines of all policies share: packed weights, a decoder layer on them, the vision tower, and CUDA graphs."""
