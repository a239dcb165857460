"""What policies share: attention masks, flow matching, images."""
