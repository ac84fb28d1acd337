"""Parts of our own for the streamer: see `config.py` for what each can be told."""
