"""What drafting and training cost, without a text to answer."""
