"""Published checkpoints by name, through the Hugging Face cache."""

import re
from pathlib import Path

_NAME = re.compile(r"[\w.-]+/[\w.-]+")
_FILES = ["*.json", "*.safetensors", "*.jinja", "*.txt"]  # no copies of the weights for other tools


def is_name(name: str) -> bool:
    """True for "organisation/model"."""
    return _NAME.fullmatch(name) is not None


def snapshot(name: str, key: str) -> Path:
    """The local folder of a published model, downloaded where the cache does not have it.

    Args:
      name: "organisation/model".
      key: the option that named it, for the message.

    Raises:
      FileNotFoundError: it is not in the cache and cannot be downloaded.
    """
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError

    try:
        return Path(snapshot_download(name, allow_patterns=_FILES))
    except (OSError, HfHubHTTPError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise FileNotFoundError(
            f"{key}={name!r}: neither a local folder nor in the Hugging Face cache, and it cannot "
            f"be downloaded ({reason}); run `hf download {name}` where there is a network and give "
            f"the folder as {key}, or set HF_TOKEN if the model asks for one"
        ) from error
