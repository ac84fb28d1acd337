"""The event sources, one module for each; `lclstream.streamer.events` finds them."""
