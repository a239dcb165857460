"""smolact's policies in IL-Studio: its interfaces, our network, loss and engine."""
