"""Code that policies share, such as attention masks, flow matching and image preprocessing."""
