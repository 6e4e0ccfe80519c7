"""From the messages of a dialogue to a prompt, by a template in Jinja as transformers has them."""

from collections.abc import Mapping, Sequence
from typing import NoReturn

from jinja2 import TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from hanmo.errors import ConfigError
from hanmo.server.errors import RequestError
from hanmo.tokenizers.prompt import special_tokens_in
from hanmo.tokenizers.protocol import Tokenizer


class ChatTemplate:
    """A template of `messages`, which `raise_exception(message)` in it refuses. Raises ConfigError for wrong syntax."""

    def __init__(self, text: str) -> None:
        environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
        environment.globals["raise_exception"] = _refuse
        try:
            self._template = environment.from_string(text)
        except TemplateError as error:
            raise ConfigError(f"the chat template is wrong: {error}") from None

    def render(self, messages: Sequence[Mapping[str, str]], tokenizer: Tokenizer) -> str:
        """Return the prompt, whose special tokens are to be read as such.

        Raises RequestError for a message that holds a special token, and for messages that the template refuses.
        """
        for place, message in enumerate(messages):
            if names := special_tokens_in(tokenizer, message["content"]):
                raise RequestError(
                    f"message {place} holds the special token {names[0]}, which the template alone may write",
                    param="messages",
                )
        try:
            return self._template.render(messages=messages, add_generation_prompt=True)
        except (TemplateError, TypeError) as error:
            raise RequestError(f"the chat template refuses the messages: {error}", param="messages") from None


def _refuse(message: str) -> NoReturn:
    raise TemplateError(message)
