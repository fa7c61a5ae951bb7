"""Uploading the saved student: nothing leaves this machine unless it is asked for in so many words."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import huggingface_hub
from rich.console import Console
from rich.markup import escape
from rich.table import Table

from semalign.errors import CacheError, SemAlignError
from semalign.models.origin import check_hub_id
from semalign.report.card import write_card
from semalign.run.files import find_json
from semalign.run.folder import RunFolder, check_files
from semalign.run.sums import SUMS, agrees_with_sums

SAVED = ("config.json", "adapter_config.json")
"""One of these lies beside a saved student's weights, or beside those of its adapter alone."""


def push(
    run: RunFolder,
    hub_model_id: str,
    *,
    private: bool | None = None,
    is_dry: bool = True,
    token: str | None = None,
    revision: str | None = None,
    message: str | None = None,
) -> dict[str, Any]:
    """Upload student/ with its card, or say what would be uploaded.

    Args:
        hub_model_id: ORG/NAME on the hub; made where it does not exist.
        private: whether a repository that is made is private; None: as the hub's account has it.
        is_dry: open no connection.
        token: None: the one of `hf auth login`.
        revision: the branch; None: main.
        message: of the commit; None: that SemAlign has trained the student.

    Returns:
        hub_model_id, private, files (name and bytes each), bytes in all, card, and uploaded: the address, or None.

    Raises:
        ConfigError: the name is none that the hub takes.
        CacheError: the run has no trained student.
        SemAlignError: the hub refuses, or is out of reach.
    """
    check_hub_id(hub_model_id)
    folder = run.training() / "student"
    if not any((folder / name).is_file() for name in SAVED):
        raise CacheError(f"{folder}: no trained student there; run `semalign train` first.")
    if (run.root / "train.json").exists():
        check_files(run.root / "train.json", "train")
    elif not agrees_with_sums(folder):
        raise CacheError(
            f"{folder}: not as it was saved ({SUMS} does not agree with it); save the student again."
        )
    find_json(run.metrics, step="evaluate")  # a card must not leave out figures because they are damaged
    write_card(run)
    files = [{"name": str(p.relative_to(folder)), "bytes": p.stat().st_size} for p in _files(folder)]
    return {
        "hub_model_id": hub_model_id,
        "private": private,
        "files": files,
        "bytes": sum(file["bytes"] for file in files),
        "card": (folder / "README.md").read_text(encoding="utf-8"),
        "uploaded": None if is_dry else _upload(folder, hub_model_id, private, token, revision, message),
    }


def _files(folder: Path) -> list[Path]:
    return sorted(p for p in folder.rglob("*") if p.is_file())


def _upload(
    folder: Path,
    name: str,
    private: bool | None,
    token: str | None,
    revision: str | None,
    message: str | None,
) -> str:
    api = huggingface_hub.HfApi(token=token)
    try:
        made = api.create_repo(name, private=private, exist_ok=True, repo_type="model")
        api.upload_folder(
            repo_id=name,
            folder_path=folder,
            repo_type="model",
            revision=revision,
            commit_message=message or "Upload student trained by SemAlign",
        )
    except OSError as error:  # the hub's HTTP, token and offline errors are all OSErrors
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise SemAlignError(
            f"{name}: the hub did not take the upload ({reason}); log in with `hf auth login`, check the name and try again."
        ) from error
    return str(made)


def show(found: dict[str, Any], console: Console) -> None:
    """The result of `push` for people."""
    if found["uploaded"] is None:
        console.print(found["card"], markup=False, highlight=False, soft_wrap=True)
    table = Table("file", "bytes", title=found["hub_model_id"], title_justify="left")
    for file in found["files"]:
        table.add_row(escape(file["name"]), f"{file['bytes']:,}")
    table.add_row("in all", f"{found['bytes']:,}", style="bold")
    console.print(table)
    said = "nothing was uploaded; add --yes to upload"
    console.print(f"uploaded: {found['uploaded']}" if found["uploaded"] else said, soft_wrap=True)
