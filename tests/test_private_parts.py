"""Private parts of transformers and jsonargparse that SemAlign relies on: where a version has changed one, this says which."""

from __future__ import annotations

import inspect
from collections.abc import Callable

import jsonargparse
import pytest
import torch
from packaging.requirements import Requirement
from test_project import PROJECT
from transformers import GenerationMixin, PreTrainedModel, Trainer, TrainingArguments
from transformers.trainer_pt_utils import get_length_grouped_indices

from semalign.config import PairingConfig
from semalign.config.parsing import Parser, keys_of, unknown_command, unknown_key

TRAINER = inspect.getsource(Trainer)


def parameters(function: Callable[..., object]) -> list[str]:
    return list(inspect.signature(function).parameters)


@pytest.mark.parametrize(
    ("what", "is_as_before"),
    [
        (
            "Trainer._get_train_sampler(train_dataset)",
            lambda: parameters(Trainer._get_train_sampler)[1:] == ["train_dataset"],
        ),
        (
            "Trainer._get_num_items_in_batch(batch_samples, device)",
            lambda: parameters(Trainer._get_num_items_in_batch)[1:] == ["batch_samples", "device"],
        ),
        (
            "Trainer.compute_loss(model, inputs, return_outputs, num_items_in_batch)",
            lambda: (
                parameters(Trainer.compute_loss)[1:]
                == ["model", "inputs", "return_outputs", "num_items_in_batch"]
            ),
        ),
        ("Trainer.model_accepts_loss_kwargs", lambda: "self.model_accepts_loss_kwargs" in TRAINER),
        ("Trainer.log(logs, start_time)", lambda: parameters(Trainer.log)[1:] == ["logs", "start_time"]),
        (
            "Trainer.save_model(output_dir, _internal_call)",
            lambda: "_internal_call" in parameters(Trainer.save_model),
        ),
        (
            "Trainer._push_from_checkpoint(checkpoint_folder)",
            lambda: hasattr(Trainer, "_push_from_checkpoint"),
        ),
        (
            "Trainer.is_distributed_loading_by_transformers, asked before a model is wrapped",
            lambda: "if self.is_distributed_loading_by_transformers:" in TRAINER,
        ),
        ("Trainer._clip_grad_norm(model)", lambda: parameters(Trainer._clip_grad_norm)[1:] == ["model"]),
        (
            "Trainer._save(output_dir, state_dict), called in every process of a split model",
            lambda: (
                parameters(Trainer._save)[1:] == ["output_dir", "state_dict"]
                and "not self.is_distributed_loading_by_transformers" in inspect.getsource(Trainer._save)
            ),
        ),
        (
            "Trainer._save_optimizer_and_scheduler(output_dir)",
            lambda: parameters(Trainer._save_optimizer_and_scheduler)[1:] == ["output_dir"],
        ),
        (
            "Trainer._load_from_checkpoint(resume_from_checkpoint, model)",
            lambda: parameters(Trainer._load_from_checkpoint)[1:] == ["resume_from_checkpoint", "model"],
        ),
        (
            "Trainer._load_optimizer_and_scheduler(checkpoint)",
            lambda: parameters(Trainer._load_optimizer_and_scheduler)[1:] == ["checkpoint"],
        ),
        ("TrainingArguments._n_gpu", lambda: "_n_gpu" in inspect.getsource(TrainingArguments)),
        (
            "get_length_grouped_indices(lengths, batch_size, mega_batch_mult, generator)",
            lambda: {"lengths", "batch_size", "generator"} <= set(parameters(get_length_grouped_indices)),
        ),
        (
            "generate's _prefill, _update_model_kwargs_for_generation and _optimize_model_for_decode",
            lambda: (
                parameters(GenerationMixin._prefill)[1:4]
                == ["input_ids", "generation_config", "model_kwargs"]
                and parameters(GenerationMixin._update_model_kwargs_for_generation)[1:3]
                == ["outputs", "model_kwargs"]
                and parameters(GenerationMixin._optimize_model_for_decode) == ["self"]
            ),
        ),
        (
            "PreTrainedModel.is_quantized",
            lambda: "is_quantized" in inspect.getsource(inspect.getmodule(PreTrainedModel)),
        ),
    ],
)
def test_transformers_still_has(what: str, is_as_before: Callable[[], bool]) -> None:
    assert is_as_before(), (
        f"this version of transformers no longer has {what} as SemAlign uses it; see training/suffix.py, training/sharded.py, api/trainer.py "
        "and evaluation/sampling.py, and lower the upper bound in pyproject.toml until they follow"
    )


def test_length_groups_are_whole_permutations_and_follow_the_generator() -> None:
    lengths = [3, 9, 1, 7, 5, 2, 8]
    drawn = [
        get_length_grouped_indices(lengths, 2, generator=torch.Generator().manual_seed(s)) for s in (0, 0, 1)
    ]
    assert drawn[0] == drawn[1] and sorted(drawn[0]) == sorted(drawn[2]) == list(range(7))


def jsonargparse_says(arguments: list[str]) -> str:
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PairingConfig, "pairing")
    with pytest.raises(jsonargparse.ArgumentError) as caught:
        parser.parse_args(arguments)
    return " ".join(str(caught.value).split())


def test_jsonargparse_still_words_its_refusals_alike() -> None:
    told = "jsonargparse words this refusal in another way, so no nearest key is offered; see the end of config/parsing.py"
    assert unknown_key(jsonargparse_says(["--pairing.mun_layers", "3"])) == "pairing.mun_layers", told
    parser = jsonargparse.ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(PairingConfig)
    with pytest.raises(jsonargparse.ArgumentError) as caught:
        parser.parse_object({"num_layer": 3})
    assert unknown_key(" ".join(str(caught.value).split())) == "num_layer", told
    root = Parser()
    root.add_commands("command", {"train": Parser()}, {"train": ""})
    with pytest.raises(Exception, match="did you mean train"):
        root.parse_args(["trian"])
    assert unknown_command("nothing of the kind") is None


def test_jsonargparse_still_lists_its_options() -> None:
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--one", type=int)
    assert "one" in keys_of(parser), "a parser no longer lists its actions; see the end of config/parsing.py"


@pytest.mark.parametrize("name", ["transformers", "jsonargparse"])
def test_packages_whose_private_parts_are_used_have_an_upper_bound(name: str) -> None:
    (wanted,) = [r for r in map(Requirement, PROJECT["dependencies"]) if r.name == name]
    assert {s.operator for s in wanted.specifier} == {">=", "<"}
