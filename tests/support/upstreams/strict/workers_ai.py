"""What does Cloudflare's Workers AI refuse? Each model has its own schema; the text models of Meta and Qwen take texts only.

https://github.com/devoxx/DevoxxGenieIDEAPlugin/issues/1256 and https://github.com/TencentCloud/TencentDB-Agent-Memory/issues/1313
"""

import re
from typing import Any

from tests.support.upstreams.strict.rules import Call, Complaint, Rule


def _contents(call: Call) -> Complaint | None:
    if not re.match("llama|qwen|mistral", call.model):
        return None
    for index, message in enumerate(call.items("messages")):
        if isinstance(message.get("content"), list):
            return _bad(f"Type mismatch of '/messages/{index}/content', 'array' not in 'string'")
        if message.get("content") is None:
            return _bad(f"required properties at '/messages/{index}' are 'role,content'")
    return None


def _bad(words: str) -> Complaint:
    return Complaint(f"AiError: Bad input: Error: oneOf at '/' not met, 0 matches: {words}")


RULES: tuple[Rule, ...] = (_contents,)


def error_body(complaint: Complaint) -> dict[str, Any]:
    return {"success": False, "errors": [{"message": complaint.message, "code": 5006}], "messages": [], "result": {}}
