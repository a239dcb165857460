"""smolact's policies in IL-Studio: IL-Studio's interfaces, smolact's network, loss and engine."""
