"""Policies in folders and in repositories of the Hugging Face hub: `policy.yaml` with a card beside it."""

import shutil
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING

import yaml

from .card import LIBRARY, card_of, is_hub_id
from .errors import HubError, PolicyError
from .rankings.files import checked_content

if TYPE_CHECKING:
    from .policy import Policy

# huggingface_hub is imported where it is used, so that a policy in a folder needs no hub.

CARD, POLICY = "README.md", "policy.yaml"
MAX_LISTED = 5


def policy_file(place: str | Path, revision: str | None) -> Path:
    """The policy file of a folder, or of a repository, from which it is downloaded.

    Args:
        place: A folder, or the id of a repository.
        revision: A branch, tag or commit of the repository.

    Raises:
        HubError: there is no such folder or repository, or no policy in it.
    """
    folder = Path(place).expanduser()
    if folder.is_file():
        raise HubError(f"{place} is a file", ["expected a folder or a repository"], "read it with `Policy.load`")
    if not folder.is_dir():
        if not is_hub_id(str(place)):
            hint = "give a folder that `policy.save_pretrained` wrote, or a repository such as user/name"
            raise HubError(f"there is no folder {place}", hint=hint)
        return download(str(place), revision)
    if revision is not None:
        hint = "leave the revision out, or name the repository"
        raise HubError(f"{place} is a folder on this machine", [f"found the revision {revision!r}"], hint)
    file = folder / POLICY
    if not file.is_file():
        found = ", ".join(sorted(entry.name for entry in folder.iterdir())[:MAX_LISTED]) or "nothing"
        raise HubError(f"{place} holds no policy", [f"found {found}, expected {POLICY}"],
                       "write one with `policy.save_pretrained(folder)`")  # fmt: skip
    return file


def download(repository: str, revision: str | None, name: str = POLICY) -> Path:
    """A file of a repository, its policy or weights of it, from the cache of huggingface_hub or from the hub.

    Raises:
        HubError: see `policy_file`.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import (
        LocalEntryNotFoundError,
        RemoteEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    at = "" if revision is None else f" at revision {revision}"
    try:
        return Path(hf_hub_download(repository, name, revision=revision))
    except RevisionNotFoundError:
        hint = "leave the revision out, or take one from the repository's list of commits"
        raise HubError(f"{repository} has no revision {revision}", hint=hint) from None
    except RemoteEntryNotFoundError:
        hint = "name a repository that `policy.push_to_hub` wrote"
        raise HubError(f"{repository}{at} holds no policy", [f"expected {name}"], hint) from None
    except RepositoryNotFoundError:
        hint = "check its name and, for a private one, `hf auth login`"
        raise HubError(f"there is no folder and no repository {repository}", hint=hint) from None
    except LocalEntryNotFoundError:
        hint = "check the network and HF_HUB_OFFLINE"
        raise HubError(
            f"the hub cannot be reached for {repository}{at}, and the cache has no copy", hint=hint
        ) from None
    except (OSError, ValueError) as cause:
        reason = str(cause).strip().partition("\n")[0]
        raise HubError(f"{repository}{at} cannot be read", [reason], "check the name and the network") from cause


def save_folder(policy: "Policy", folder: Path) -> None:
    """Write a policy, its files and its card into a folder, which is created; an earlier policy is replaced.

    Raises:
        HubError: the folder is a file, or has another README.md.
        PolicyError: a file of the policy is not beside it, or has another content.
    """
    if folder.exists() and not folder.is_dir():
        raise HubError(f"{folder} is a file", ["expected a folder"], "name another one")
    card = folder / CARD
    if card.exists() and not is_own_card(card):
        hint = "name another folder, or move that file away"
        raise HubError(f"{card} exists and is no card of a policy", hint=hint)
    folder.mkdir(parents=True, exist_ok=True)
    copy_ranking(policy, folder)
    weights = policy.weights
    if weights is None:
        policy.save(folder / POLICY)
        card.write_text(card_of(policy), encoding="utf-8")
        return
    # The weights lie beside the policy there, whatever folder they had.
    policy.model_copy(update={"weights": weights.model_copy(update={"folder": None})}).save(folder / POLICY)
    if (source := weights.check(policy.folder)) != folder.resolve():
        # Its card says what the weights were trained on.
        for name in (*weights.files, CARD):
            shutil.copyfile(source / name, folder / name)


def copy_ranking(policy: "Policy", folder: Path) -> None:
    """Copy the ranking of a policy's channels into another folder; does nothing where it has none.

    Raises:
        PolicyError: the file is not beside the policy, or has another content.
    """
    file, sha256 = policy.canonical().width_selection.file, policy.width_selection.sha256
    if file is None or sha256 is None or policy.folder == folder.resolve():
        return
    if policy.folder is None:
        hint = "load the policy from its file, or say where its files lie: `policy.beside(FOLDER)`"
        raise PolicyError("the ranking of the policy's channels is not beside it", [f"expected {file}"], hint)
    (folder / file).write_bytes(checked_content(policy.folder / file, sha256))


def is_own_card(card: Path) -> bool:
    """True for a card whose metadata name skipsearch as the library."""
    parts = card.read_text(encoding="utf-8", errors="replace").split("---\n", 2)
    try:
        data = yaml.safe_load(parts[1]) if len(parts) == 3 else None
    except yaml.YAMLError:
        return False
    return isinstance(data, dict) and data.get("library_name") == LIBRARY


def upload(policy: "Policy", repository: str, private: bool | None, token: str | None, message: str | None) -> str:
    """Upload a policy and its card to a repository, which is created where it does not exist.

    Returns:
        The address of the commit.

    Raises:
        HubError: the policy names no model of the hub, so that others could not load it, or the hub refuses.
    """
    if not is_hub_id(policy.model.id):
        found = f"found {policy.model.id or 'no id'}, expected the hub id of the base model"
        hint = "write it in the policy, as in `model: {id: Qwen/Qwen3-8B, num_layers: 36}`"
        raise HubError("the policy names no model that others can load", [found], hint)
    from huggingface_hub import create_repo, upload_folder

    with tempfile.TemporaryDirectory() as place:
        save_folder(policy, Path(place))
        text = message or f"Upload policy {policy.fingerprint}"
        try:
            create_repo(repository, private=private, token=token, exist_ok=True)
            done = upload_folder(repo_id=repository, folder_path=place, commit_message=text, token=token)
        except (OSError, ValueError) as cause:
            reason = str(cause).strip().partition("\n")[0]
            hint = "check the name, the network and `hf auth login`"
            raise HubError(f"{repository} cannot be written", [reason], hint) from cause
    return str(done.commit_url)
