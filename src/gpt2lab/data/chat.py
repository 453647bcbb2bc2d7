"""Conversations: which text they become, and which of it the model learns to write.

    {"messages": [{"role": "user", "content": "2 + 2?"}, {"role": "assistant", "content": "4."},
                  {"role": "user", "content": "And 3 + 3?"}, {"role": "assistant", "content": "6."}]}

    <|endoftext|>User: 2 + 2?\\n\\nAssistant: 4.\\n\\nUser: And 3 + 3?\\n\\nAssistant: 6.<|endoftext|>
                                          ‾‾‾‾‾‾‾‾‾‾‾                             ‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾‾

The template is ordinary text, so it needs no new token: a name and a colon, a space, the content, and a blank line
between messages. What is overlined counts in the loss: the assistant's text and what ends it, so that the model learns
where to stop. That is the name of the next speaker, or after the last message the end-of-text token, with which the
next document begins. What counts and what does not is encoded separately, but the ids are those of the whole text,
because the patterns of GPT-2 and GPT-4 split words before a space: a prompt that ends with ``Assistant:`` has the ids
that it had in training.

    {"prompt": "2 + 2 =", "completion": " 4"}       ->       <|endoftext|>2 + 2 = 4<|endoftext|>

A prompt and its completion are taken as they are, without a template; the completion counts. It should begin with the
space: a prompt that ends with one has other ids than the whole text.
"""

from __future__ import annotations

from itertools import groupby
from typing import Any

from gpt2lab.data.documents import Conversation
from gpt2lab.data.formats import as_text, kind_of
from gpt2lab.errors import InputError, did_you_mean

NAMES = {"system": "System", "user": "User", "assistant": "Assistant"}
"""What the text calls each role."""


def conversation(value: Any, where: str, errors: str) -> Conversation:
    """Return the conversation in a JSON value.

    Args:
        value: An object with ``messages``, or with ``prompt`` and ``completion``; its other keys are not used.
        where: The place of the value, for messages.
        errors: What to do with half a surrogate pair; one of `formats.ERRORS`.

    Raises:
        InputError: It holds neither, a message is not an object of role and content, a role is unknown, or nothing is
            said by the assistant.
    """
    if isinstance(value, dict) and "messages" in value:
        return _of_messages(value["messages"], where, errors)
    if not isinstance(value, dict) or not {"prompt", "completion"} <= value.keys():
        found = f"has the keys {', '.join(map(str, value))}" if isinstance(value, dict) else f"is {kind_of(value)}"
        raise InputError(f"{where}: {found}; a conversation is an object with messages, or with prompt and completion")
    prompt, completion = (as_text(value[name], where, name, errors) for name in ("prompt", "completion"))
    if not completion:
        raise InputError(f"{where}: the completion is empty, so there is nothing to learn; remove it")
    return Conversation(((prompt, False), (completion, True)))


def _of_messages(messages: Any, where: str, errors: str) -> Conversation:
    if not isinstance(messages, list):
        raise InputError(f"{where}: messages is {kind_of(messages)}, not a list of objects with role and content")
    spans: list[tuple[str, bool]] = []
    ends_reply = False
    for number, message in enumerate(messages):
        name = f"messages[{number}]"
        if not isinstance(message, dict) or not {"role", "content"} <= message.keys():
            raise InputError(f"{where}: {name} is not an object with role and content; correct it")
        role, content = message["role"], as_text(message["content"], where, f"{name}.content", errors)
        if not isinstance(role, str) or role not in NAMES:
            hint = did_you_mean(str(role), NAMES)
            raise InputError(f'{where}: {name} has the role "{role}"{hint}; roles are {", ".join(NAMES)}')
        spans.append((f"\n\n{NAMES[role]}:" if spans else f"{NAMES[role]}:", ends_reply))
        ends_reply = role == "assistant"
        if ends_reply and not content.strip():
            raise InputError(f"{where}: {name} is an empty reply, from which nothing can be learned; remove it")
        spans.append((f" {content}", ends_reply))
    if not any(counts for _, counts in spans):
        raise InputError(f"{where}: the assistant says nothing, so there is nothing to learn; remove it")
    by_counts = groupby(spans, lambda span: span[1])
    return Conversation(tuple(("".join(text for text, _ in group), counts) for counts, group in by_counts))
