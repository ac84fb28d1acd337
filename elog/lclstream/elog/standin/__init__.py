"""A stand-in of the electronic logbook: same calls, same messages, nothing kept.

What passes against it should pass against the real one, so it keeps the real one's habits:
refusals answer 200, state changes by GET, keyless messages in three forms of time.
"""
