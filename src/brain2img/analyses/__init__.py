"""What is asked of finished runs, beside the chain: each writes a folder and a page of its own."""
