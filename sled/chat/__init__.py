"""`sled chat`: a conversation in the terminal that shows which words were drafted here, and what became of them."""
