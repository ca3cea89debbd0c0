"""What an HTML page holds, as a browser would take it apart."""

import html.parser


class Parsed(html.parser.HTMLParser):
    """Elements with their attributes, texts of the page, and the text inside each script."""

    def __init__(self, page):
        super().__init__()
        self.elements, self.scripts, self.text, self._inside = [], [], "", ""
        self.feed(page)

    def handle_starttag(self, tag, attrs):
        self.elements.append((tag, dict(attrs)))
        self._inside = tag
        if tag == "script":
            self.scripts.append("")

    def handle_endtag(self, tag):
        self._inside = ""

    def handle_data(self, data):
        if self._inside == "script":
            self.scripts[-1] += data
        elif self._inside != "style":
            self.text += data
