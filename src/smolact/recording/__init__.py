"""From what happens to a dataset: a scripted expert's demonstrations."""
