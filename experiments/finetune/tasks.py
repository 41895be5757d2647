"""The data sets as files of prompts and answers, and questions for general ability."""

import gzip
import json
import re
import tarfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np

from experiments.finetune import trace
from experiments.finetune.config import ORDERS, Config
from jaxcl.errors import MissingFileError
from jaxcl.files import write_text

QUESTIONS = {
    "dbpedia": "What kind of thing is described?",
    "agnews": "What is the topic of this news?",
    "amazon": "How does the reviewer rate the product?",
    "clinc150": "In which domain is this request?",
}
GENERAL = "piqa", "arc-easy", "openbookqa"

#: The ten domains of CLINC150 and their intents, fifteen each (Larson et al. 2019,
#: arXiv:1909.02027, table of the appendix).
DOMAINS = {
    "banking": "freeze_account routing pin_change bill_due pay_bill account_blocked "
    "interest_rate min_payment bill_balance transfer order_checks balance "
    "spending_history transactions report_fraud",
    "credit cards": "replacement_card_duration expiration_date damaged_card "
    "improve_credit_score report_lost_card card_declined credit_limit_change apr "
    "redeem_rewards credit_limit rewards_balance application_status credit_score "
    "new_card international_fees",
    "kitchen and dining": "food_last confirm_reservation how_busy "
    "ingredients_list calories nutrition_info recipe restaurant_reviews "
    "restaurant_reservation meal_suggestion restaurant_suggestion cancel_reservation "
    "ingredient_substitution cook_time accept_reservations",
    "home": "what_song play_music todo_list_update reminder reminder_update "
    "calendar_update order_status update_playlist shopping_list calendar next_song "
    "order todo_list shopping_list_update smart_home",
    "auto and commute": "current_location oil_change_when oil_change_how uber traffic "
    "tire_pressure schedule_maintenance gas mpg distance directions last_maintenance "
    "gas_type tire_change jump_start",
    "travel": "plug_type travel_notification translate flight_status "
    "international_visa timezone exchange_rate travel_suggestion travel_alert "
    "vaccines lost_luggage book_flight book_hotel carry_on car_rental",
    "utility": "weather alarm date find_phone share_location timer make_call "
    "calculator definition measurement_conversion flip_coin spelling time roll_dice "
    "text",
    "work": "pto_request_status next_holiday insurance_change insurance "
    "meeting_schedule payday taxes income rollover_401k pto_balance pto_request w2 "
    "schedule_meeting direct_deposit pto_used",
    "small talk": "who_made_you meaning_of_life who_do_you_work_for do_you_have_pets "
    "what_are_your_hobbies fun_fact what_is_your_name where_are_you_from goodbye "
    "thank_you greeting tell_joke are_you_a_bot how_old_are_you what_can_i_ask_you",
    "meta": "change_speed user_name whisper_mode yes change_volume no "
    "change_language repeat change_accent cancel sync_device change_user_name "
    "change_ai_name reset_settings maybe",
}


_LETTERS = 240  # some texts have words of other scripts, of many tokens


def write_tasks(config: Config, place: Path) -> dict[str, Path]:
    """A folder with ``train.jsonl`` and ``test.jsonl`` for each data set of the orders."""
    sizes = {
        "train": config.num_steps * config.batch_size,
        "test": config.test_rows,
    }
    orders = [ORDERS[name].tasks[: config.num_tasks] for name in config.orders]
    names = {name: place / name for tasks in orders for name in tasks}
    of_trace = trace.rows(Path(config.data), [*{*names} & {*trace.TASKS}])
    for name, folder in names.items():
        for split, size in sizes.items():
            if name in trace.TASKS:
                rows = of_trace[name, split]
                made = partial(trace.prompt, name)
            else:
                rows = [*_pairs(Path(config.data) / "text-cls", name, split)]
                made = partial(_prompt, QUESTIONS[name])
            # The same rows for all arms and seeds: the seed draws their order.
            order = np.random.default_rng(config.seed).permutation(len(rows))[:size]
            lines = [made(rows[row], config.words) for row in order]
            _write(folder / f"{split}.jsonl", lines)
    return names


def _prompt(question: str, row: tuple[str, str], words: int) -> dict[str, str]:
    text, answer = row
    short = " ".join(text.split()[:words])[:_LETTERS]
    return {"prompt": f"{short}\n\n{question}\nAnswer:", "answer": answer}


def _pairs(folder: Path, name: str, split: str) -> Iterator[tuple[str, str]]:
    """Texts and the names of their classes."""
    if name != "clinc150":
        for line in _lines(folder / name / f"{split}.jsonl.gz"):
            record = json.loads(line)
            yield record["text"], record["label_name"]
        return
    domain_of = {i: name for name, words in DOMAINS.items() for i in words.split()}
    path = folder / name / "data_full.json.gz"
    for text, intent in json.loads("".join(_lines(path)))[split]:
        yield text, domain_of[intent]


def _lines(path: Path) -> list[str]:
    if not path.is_file():
        msg = f"--data: {path} is not there; see README.md of this experiment."
        raise MissingFileError(msg)
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return file.readlines()


def _write(path: Path, lines: list[dict]) -> None:
    text = "".join(json.dumps(line, ensure_ascii=False) + "\n" for line in lines)
    if not path.exists() or path.read_text(encoding="utf-8") != text:
        write_text(path, text)


# ------------------------------------------------------------------------ general ability


def write_questions(config: Config, place: Path) -> dict[str, Path]:
    """A file of questions with choices for each set, the first ones of its test set."""
    folder, found = Path(config.data) / "instruct", {}
    for name in GENERAL:
        made = _piqa(folder) if name == "piqa" else _adapters(folder, name)
        lines = [
            line for line, _ in zip(made, range(config.general_rows), strict=False)
        ]
        found[name] = place / f"{name}.jsonl"
        _write(found[name], lines)
    return found


def _piqa(folder: Path) -> Iterator[dict]:
    labels = _lines(folder / "piqa_valid_labels.lst.gz")
    for line, label in zip(_lines(folder / "piqa_valid.jsonl.gz"), labels, strict=True):
        record = json.loads(line)
        choices = [record["sol1"].strip(), record["sol2"].strip()]
        yield {
            "question": record["goal"],
            "choices": choices,
            "answer": int(label),
        }


_NAMES = {"arc-easy": "ARC-Easy", "openbookqa": "openbookqa"}
_ASKED = "Please choose the correct answer to the question: "


def _adapters(folder: Path, name: str) -> Iterator[dict]:
    """Questions as LLM-Adapters (arXiv:2304.01933) wrote them, taken apart again."""
    path = folder / "llm_adapters_commonsense_math.tar.xz"
    if not path.is_file():
        msg = f"--data: {path} is not there; see README.md of this experiment."
        raise MissingFileError(msg)
    with tarfile.open(path) as archive:
        member = archive.extractfile(f"./dataset/{_NAMES[name]}/test.json")
        assert member is not None
        records = json.load(member)
    for record in records:
        question, _, rest = record["instruction"].partition("\n\n")
        listed = rest.partition("\n\nAnswer format:")[0]
        choices = [part.strip() for part in re.split(r"Answer\d+: ", listed)[1:]]
        right = int(record["answer"].removeprefix("answer")) - 1
        if len(choices) > right and all(choices):
            yield {
                "question": question.removeprefix(_ASKED),
                "choices": choices,
                "answer": right,
            }
