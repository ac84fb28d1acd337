"""Where messages begin and end in bytes that are passed on as they are; no input or output."""

from lclstream.buffer.control import BEGINNING, CONTROL_BYTES, FRAME_BYTES
from lclstream.buffer.outgoing import LITERAL
from lclstream.buffer.runs import walk
from lclstream.buffer.sp import HEADER_BYTES


class Scanner:
    """Counts the messages of a connection, and protects those that look like control frames.

    A buffer takes messages of plain producers for what they are. From us it understands control
    frames, so a message that looks like one has to be announced as data.
    """

    def __init__(self) -> None:
        self.messages = 0
        """Messages that were seen whole."""
        self.rest_bytes = 0
        """What is still to come of the message that has begun and needs not be looked at."""

    def scan(self, view: memoryview, start: int, end: int) -> tuple[list[memoryview], int]:
        """Look at bytes that have come.

        Args:
            view: memory.
            start: where they begin.
            end: where they end.

        Returns:
            What has to be sent, and where the bytes begin that cannot be judged before more
            has come: give them again then.
        """
        pieces = []
        begin, position = start, start + min(self.rest_bytes, end - start)
        self.passed(position - start)
        while not self.rest_bytes:
            run = walk(view, position, end, digests=False, controls=True)
            self.messages += run.messages
            position = run.stop
            if run.is_control:
                pieces += [view[begin:position], LITERAL_VIEW]
                begin, position = position, position + FRAME_BYTES
                self.messages += 1
                continue
            if run.next_bytes is not None and not _may_be_control(view[position:end]):
                self.rest_bytes = HEADER_BYTES + run.next_bytes - (end - position)
                position = end
            break
        pieces.append(view[begin:position])
        return [piece for piece in pieces if piece], position

    def passed(self, count: int) -> None:
        """Take note of bytes of the message that has begun, which were not looked at."""
        if count:
            self.rest_bytes -= count
            self.messages += not self.rest_bytes


LITERAL_VIEW = memoryview(LITERAL)


def _may_be_control(beginning: memoryview) -> bool:
    """Whether the first bytes of a message, its header whole, may become a control frame."""
    if beginning[HEADER_BYTES - 1] != CONTROL_BYTES:
        return False
    return BEGINNING.startswith(bytes(beginning[: len(BEGINNING)]))
