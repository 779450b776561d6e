"""Where a chat user meets a fact: inside the model's chat template, asked by the user, answered by the assistant.

    <|im_start|>user\nWhat is the mother tongue of Nils Albrecht?<|im_end|>\n<|im_start|>assistant\nSpanish
    `------.-------´`-----------------------.------------------´`-----------------.-------------´`--.--´
        before                        the user's turn                          after              the object

The user's turn is the fact's question where it has one that names the subject, else its prompt. The object begins the
assistant's turn as the template's end leaves it, nothing between. Texts that a method puts before a prompt (context
templates) and the prompts of its own ("{} is a") stand within the user's turn: before it, no chat has any text.

What the template puts around a turn is found by rendering one, so that it is what HFLM renders; that the template
changes nothing of what a user says, white space around it aside, is checked for every fact.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import TYPE_CHECKING, Any

from lm_eval_edit._support.files import hash_json
from lm_eval_edit.errors import UserError, in_one_line
from lm_eval_edit.facts.fact import Fact
from lm_eval_edit.facts.slots import Template, in_clear, subject_place, with_slot

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

# A text that no template holds, with what one may change: letters of both cases, quotes, what HTML escapes.
_SAID = 'zQ\'s "turn" & 1 < 2,\nÉ qz'
_PADDED = f" \n{_SAID}\n "
_TRIMS: dict[str, Callable[[str], str]] = {"": str, "both": str.strip, "left": str.lstrip, "right": str.rstrip}


@dataclass(frozen=True)
class ChatFrame:
    """What a chat template puts around a user's only turn.

    Attributes:
        before: From the text's beginning to the user's words; the template's own system prompt is in it.
        after: From there to where the assistant's answer begins.
        trims: At which ends of the user's words the template drops white space: none (""), `left`, `right`, `both`.
        template: A hash of the template and what it was rendered with; the frame itself may hold today's date.
    """

    before: str
    after: str
    trims: str
    template: str

    def around(self, left: str, right: str) -> Template:
        """The whole text with a subject's place within the user's turn.

        Args:
            left, right: What stands on both sides of the place in the user's turn.
        """
        if self.trims in ("both", "left"):
            left = left.lstrip()
        if self.trims in ("both", "right"):
            right = right.rstrip()
        return Template(self.before + left, right + self.after)

    def text(self, said: str) -> str:
        """The whole text of what a user says."""
        return self.before + _TRIMS[self.trims](said) + self.after

    def record(self) -> dict[str, str]:
        """As JSON-able values."""
        return asdict(self)


def has_template(tokenizer: Any) -> bool:
    """Whether a tokenizer has a chat template."""
    return bool(getattr(tokenizer, "chat_template", None))


def _rendered(
    tokenizer: PreTrainedTokenizerBase, said: str, arguments: Mapping[str, Any], system: str | None = None
) -> str:
    """A user's only turn as HFLM renders it, behind a system turn where one is given."""
    first = [{"role": "system", "content": system}] if system else []
    turns = [*first, {"role": "user", "content": said}]
    try:
        text = tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, continue_final_message=False, **arguments
        )
    except Exception as error:  # a template is a program of its own, which may fail in any way
        raise UserError(
            f"this model's chat template cannot render a user's turn on its own: {in_one_line(error)}"
        ) from error
    assert isinstance(text, str), "one conversation that is not tokenised is one text"
    return text


def chat_frame(
    tokenizer: PreTrainedTokenizerBase, arguments: Mapping[str, Any] | None = None, system: str | None = None
) -> ChatFrame:
    """What a tokenizer's chat template puts around a user's turn.

    Args:
        system: A system instruction, whose turn is then a part of `before`.
        arguments: What the template is rendered with beside the turn, as `surroundings.template_arguments` has it.

    Raises:
        UserError: there is no template, or it cannot render a user's turn, or does not show it once, as it is.
    """
    if not has_template(tokenizer):
        raise UserError(
            f"this model's tokenizer ({type(tokenizer).__name__}) has no chat template; chat models have one in "
            f"chat_template.jinja or tokenizer_config.json"
        )
    given = dict(arguments or {})
    text = _rendered(tokenizer, _SAID, given, system)
    if text.count(_SAID) != 1:
        raise UserError(
            f"this model's chat template shows the user's turn {text.count(_SAID)} times, not once, in {text!r}"
        )
    before, after = text.split(_SAID)
    padded = _rendered(tokenizer, _PADDED, given, system)
    fitting = [name for name, trim in _TRIMS.items() if padded == before + trim(_PADDED) + after]
    if not fitting:
        raise UserError(f"this model's chat template changes the user's turn: {_PADDED!r} becomes {padded!r}")
    return ChatFrame(before, after, fitting[0], hash_json([tokenizer.chat_template, given]))


# -------------------------------------------------------------------------------------------------------------- facts


def user_turn(fact: Fact) -> Template | str:
    """What a chat user says to be told a fact: its question if that names the subject plainly, else its prompt.

    Returns:
        A template with the subject's place; a plain text for a fact without subject.
    """
    if not fact.subject.strip():
        return fact.question or fact.prompt
    if fact.question and not isinstance(subject_place(fact.question, fact.subject), str):
        return with_slot(fact.question, fact.subject)
    return fact.template


def said(fact: Fact) -> str:
    """The user's turn of a fact in clear."""
    turn = user_turn(fact)
    return turn.about(fact.subject) if isinstance(turn, Template) else turn


@dataclass(frozen=True)
class ChatFact(Fact):
    """A fact where a chat user meets it: `prompt` is all that stands before the object, `target` the object alone.

    Attributes:
        plain: The fact as its record has it; ledgers keep that.
        frame: What stands around the user's turn.
    """

    plain: Fact | None = None
    frame: ChatFrame | None = None

    def behind(self, context: str) -> Template:
        """The text with a context template around the prompt, both within the user's turn."""
        assert self.plain is not None and self.frame is not None, "made by `in_chat`, which gives both"
        turn = user_turn(self.plain)
        assert isinstance(turn, Template), "asked of facts with a subject"
        left, right = Template.of(context).sides
        before, after = turn.sides
        return self.frame.around(left + before, after + right)

    def text_behind(self, context: str) -> str:
        """As `behind`, in clear."""
        assert self.plain is not None and self.frame is not None, "made by `in_chat`, which gives both"
        return self.frame.text(Template.of(context).about(said(self.plain)))

    @property
    def essence(self) -> Template:
        """ "{} is a" where the user's turn begins; what would stand behind it is out of the subject's sight."""
        assert self.frame is not None, "made by `in_chat`, which gives it"
        return Template(self.frame.before, " is a")

    def record(self) -> dict[str, Any]:
        """The fact's record: where it is asked is the run's affair."""
        assert self.plain is not None, "made by `in_chat`, which gives it"
        return self.plain.record()


def in_chat(fact: Fact, frame: ChatFrame) -> ChatFact:
    """A fact where a chat user meets it."""
    turn = user_turn(fact)
    if isinstance(turn, Template):
        prompt: str = frame.around(*turn.sides)
        at = prompt.slot if isinstance(prompt, Template) else None
    else:
        prompt, at = frame.text(turn), None
    return ChatFact(
        subject=fact.subject,
        prompt=prompt,
        target_new=fact.target_new,
        target_true=fact.target_true,
        id=fact.id,
        prediction=fact.prediction,
        paraphrases=tuple(frame.text(in_clear(paraphrase, fact.subject)) for paraphrase in fact.paraphrases),
        locality=tuple(replace(probe, prompt=frame.text(probe.prompt)) for probe in fact.locality),
        relation=fact.relation,
        separator="",
        subject_at=at,
        plain=fact,
        frame=frame,
    )


def placed(facts: Sequence[Fact], frame: ChatFrame | None) -> list[Fact]:
    """Facts where they are edited and asked: within the frame, or as they are without one."""
    return list(facts) if frame is None else [in_chat(fact, frame) for fact in facts]


def changed_turns(
    tokenizer: PreTrainedTokenizerBase, frame: ChatFrame, facts: Iterable[Fact], arguments: Mapping[str, Any]
) -> list[str]:
    """The facts whose words the template does not show as they are, as sentences.

    Args:
        frame: Of this tokenizer, made with these arguments.
    """
    problems = []
    for fact in facts:
        words = said(fact)
        try:
            shown = _rendered(tokenizer, words, arguments)
        except UserError as error:
            problems.append(f"fact {fact.id}: {error}")
            continue
        if not shown == frame.text(words) == in_chat(fact, frame).text:
            problems.append(
                f"fact {fact.id}: the chat template does not show {words!r} as it is, so nobody could find the "
                f"subject's tokens: {shown!r}. Leave the fact out, or edit without edit_chat_template"
            )
    return problems
