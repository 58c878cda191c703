"""Which parts does an answer have besides texts and calls?

Images that the model made become events. Everything else that no event expresses is named, so that the client learns of it:
results of tools that ran at the vendor, audio, code, log probabilities.
"""

import re

from common.canonical.errors import single_word_code
from common.canonical.events import LeftOut, OutputImage

_IMAGE_DATA = re.compile(r"data:(image/[\w.+-]{1,50});base64,")
_IMAGE_TYPE = re.compile(r"image/[\w.+-]{1,50}")
_ADDRESS = re.compile(r"https?://[^\s()<>]{1,8000}")


def left_out(name: object, fallback: str = "unknown") -> LeftOut:
    """Return the event for a part that is left out. A vendor's word for it that is no word is replaced by ``fallback``."""
    return LeftOut(single_word_code(name) or fallback)


def image_at(url: str, choice: int = 0) -> OutputImage | LeftOut:
    """Return the image of a data URL, or at an address on the web."""
    if match := _IMAGE_DATA.match(url):
        return OutputImage(match[1], url[match.end() :], choice=choice)
    return OutputImage(url=url, choice=choice) if _ADDRESS.fullmatch(url) else LeftOut("images")


def image_of(data: str, media_type: str, choice: int = 0) -> OutputImage | LeftOut:
    """Return the image in base64 data; something else, such as audio, is named by the first word of its type."""
    if data and _IMAGE_TYPE.fullmatch(media_type):
        return OutputImage(media_type, data, choice=choice)
    return left_out(media_type.partition("/")[0])
