"""
Phi-3's chat template, in our code: a template in a model file is a program.

Owns which conversations are well formed and which token ids they become. Knows no engine. Ids are put
together directly, so a control token can only come from here and never from a message's content.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

from edgephi.errors import FieldViolation, InvalidRequest
from edgephi.text.tokenizer import Tokenizer

BOS = "<s>"
END_OF_TURN = "<|end|>"
# What a control token with rstrip swallows: the White_Space property of Unicode. str.lstrip() alone would
# also take U+001C to U+001F, which the tokenizer keeps.
WHITE_SPACE = (
    "\t\n\v\f\r \x85\xa0\u1680\u2000\u2001\u2002\u2003\u2004\u2005\u2006\u2007"
    "\u2008\u2009\u200a\u2028\u2029\u202f\u205f\u3000"
)


class Role(enum.Enum):
    """Who speaks a message."""

    SYSTEM = "system"
    USER = "user"
    ASSISTANT = "assistant"

    @property
    def token(self) -> str:
        """The control token that opens a turn of this role."""
        return f"<|{self.value}|>"


@dataclass(frozen=True, slots=True)
class Message:
    """
    One turn of a conversation.

    Attributes:
        role: Who speaks.
        content: What is said; plain text, at least one character that is not white space.
    """

    role: Role
    content: str


def render_chat(tokenizer: Tokenizer, messages: Sequence[Message]) -> list[int]:
    """
    Turn a conversation into the prompt that asks for the assistant's next turn.

        <s> | <|system|> content <|end|> | <|user|> content <|end|> | ... | <|assistant|>

    The published template writes a newline after each control token, but the published tokenizer gives those
    tokens rstrip, so the newline and any white space a content begins with vanish; the same is done here.
    White space at the end of a content stays. The system turn is closed like the others.

    Returns:
        Token ids, BOS exactly once and first.

    Raises:
        InvalidRequest: Naming every message that breaks a rule: at least one message; a system message only
            first; the last one from the user; no empty content. Roles need not alternate.
        ModelInvalid: If the tokenizer lacks Phi-3's control tokens.
    """
    found = conversation_violations(messages)
    if found:
        raise InvalidRequest(*found)
    end_id = tokenizer.special_id(END_OF_TURN)
    ids = [tokenizer.special_id(BOS)]
    for index, message in enumerate(messages):
        content = message.content.lstrip(WHITE_SPACE)
        ids += [tokenizer.special_id(message.role.token), *tokenizer.encode(content, field=_content(index)), end_id]
    ids.append(tokenizer.special_id(Role.ASSISTANT.token))
    return ids


def render_prompt(tokenizer: Tokenizer, text: str) -> list[int]:
    """
    Turn a text into a prompt the model continues: BOS and the text, no template.

    Raises:
        InvalidRequest: If the text is not valid Unicode.
        ModelInvalid: If the tokenizer has no BOS.
    """
    return [tokenizer.special_id(BOS), *tokenizer.encode(text, field="prompt")]


def conversation_violations(messages: Sequence[Message]) -> list[FieldViolation]:
    """Return every rule of a conversation that is broken; empty when it is well formed."""
    if not messages:
        return [FieldViolation("messages", "has 0 messages; send at least one, the last from the user")]
    found: list[FieldViolation] = []
    last = len(messages) - 1
    for index, message in enumerate(messages):
        if message.role is Role.SYSTEM and index > 0:
            description = "is system; only the first message may be, so put all instructions there"
            found.append(FieldViolation(f"messages[{index}].role", description))
        elif message.role is not Role.USER and index == last:
            description = f"is {message.role.value}; the last message must be user"
            if message.role is Role.ASSISTANT:
                description += ", continuing an assistant message is not supported"
            found.append(FieldViolation(f"messages[{index}].role", description))
        if not message.content.lstrip(WHITE_SPACE):
            found.append(FieldViolation(_content(index), "is empty or only white space; send some text"))
    return found


def _content(index: int) -> str:
    return f"messages[{index}].content"
