"""A page as a program reads it."""

import base64
import html.parser
import io

import av


class Page(html.parser.HTMLParser):
    """What stands in a page.

    Attributes:
      resources: values of every attribute by which a browser may fetch something.
      figures: name -> text of what carries data-figure. scores: of the clips, in order.
      tags: of every element. text: all of it that a reader sees.
    """

    def __init__(self, text):
        super().__init__()
        self.resources, self.figures, self.scores = [], {}, []
        self.tags, self.text, self._waiting = [], "", None
        self.feed(text)
        self.close()

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        found = dict(attributes)
        for name in ("src", "href", "srcset", "xlink:href", "data", "poster", "action"):
            if name in found:
                self.resources.append(found[name])
        if "data-score" in found:
            self.scores.append(float(found["data-score"]))
        self._waiting = found.get("data-figure")

    def handle_data(self, data):
        self.text += data
        if self._waiting:
            self.figures[self._waiting] = data
            self._waiting = None

    def of_kind(self, kind):
        """The bytes of every data URI of a kind, e.g. audio/mpeg."""
        head = f"data:{kind};base64,"
        return [
            base64.b64decode(value.removeprefix(head))
            for value in self.resources
            if value.startswith(head)
        ]


def seconds_of(sound):
    """How long an encoded sound plays."""
    with av.open(io.BytesIO(sound)) as opened:
        return sum(frame.samples / frame.sample_rate for frame in opened.decode(audio=0))
