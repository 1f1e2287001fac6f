"""Which line of the package asked for an operation of a compiled program."""

import re
from collections.abc import Iterator


class Sources:
    """The frames of all calls, as XLA lists them in the program's text."""

    def __init__(self, text: str):
        self._files = dict(re.findall(r'^(\d+) "(.*\.py)"$', text, re.MULTILINE))
        self._places = dict(_table(text, r"file_name_id=(\d+) .*?line=(\d+)"))
        self._frames = dict(_table(text, r"file_location_id=(\d+) parent_frame_id=(\d+)"))

    def of(self, name: str, attributes: str) -> str:
        """`file.py:line` and the last name of an operation."""
        named = re.search(r'op_name="([^"]*)"', attributes)
        frame = re.search(r"stack_frame_id=(\d+)", attributes)
        said = named[1] if named else name
        line = self._line(frame[1]) if frame else ""
        return f"{line} {said.rpartition('/')[2]}" if line else said[-60:]

    def _line(self, frame: str) -> str:
        """The innermost line that is of this package; "" where there is none."""
        while frame in self._frames:
            place, parent = self._frames[frame]
            file, line = self._places.get(place, ("", ""))
            _, inside, path = self._files.get(file, "").rpartition("/atod_jax/")
            if inside:
                return f"{path}:{line}"
            frame = str(int(parent) - 1)
        return ""


def _table(text: str, fields: str) -> Iterator[tuple[str, tuple[str, str]]]:
    for number, *values in re.findall(rf"^(\d+) \{{{fields}", text, re.MULTILINE):
        yield number, (values[0], values[1])
