"""The recipe's `objective`: other tools' words, and what cannot go together."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from lorimer.tasks._objective_section import DiffusionObjective
from lorimer.train.recipe_text import describe_errors, rename_aliases


def _read(**values: Any) -> DiffusionObjective:
    problems: list[str] = []
    renamed = rename_aliases(values, DiffusionObjective, problems)
    assert not problems
    return DiffusionObjective.model_validate(renamed)


@pytest.mark.parametrize(
    ("theirs", "ours"),
    [
        ({"snr_gamma": 5}, {"min_snr_gamma": 5}),
        ({"debiased_estimation_loss": True}, {"debiased": True}),
        ({"multires_noise_discount": 0.3}, {"pyramid_noise": 0.3}),
        ({"ip_noise_gamma": 0.1}, {"input_perturbation": 0.1}),
        ({"loss_type": "l2"}, {"loss": "mse"}),
        ({"loss_type": "huber", "huber_c": 0.2}, {"loss": "huber", "huber_delta": 0.2}),
        ({"prior_loss_weight": 0.5}, {"prior_weight": 0.5}),
        ({"weighting_scheme": "none"}, {}),
        ({"weighting_scheme": "sigma_sqrt"}, {"weighting": "sigma-sqrt"}),
        (
            {"weighting_scheme": "logit_normal", "logit_mean": 0.1},
            {"timesteps": "logit-normal", "timestep_mean": 0.1},
        ),
        (
            {"timestep_sampling": "sigma", "weighting_scheme": "mode", "mode_scale": 1},
            {"timesteps": "mode", "timestep_scale": 1},
        ),
        (
            {"timestep_sampling": "shift", "discrete_flow_shift": 3.1, "sigmoid_scale": 1.5},
            {"timesteps": "sigmoid", "timestep_shift": 3.1, "timestep_std": 1.5},
        ),
        ({"timestep_sampling": "flux_shift"}, {"timesteps": "sigmoid", "timestep_shift": "auto"}),
        ({"prediction_type": "v_prediction"}, {"prediction": "v_prediction"}),
    ],
    ids=lambda values: " ".join(values),
)
def test_words_of_other_tools_are_understood(theirs: dict[str, Any], ours: dict[str, Any]) -> None:
    assert _read(**theirs) == _read(**ours)


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"min_snr_gamma": 5, "debiased": True}, "min_snr_gamma and debiased .* choose one"),
        ({"p2_gamma": 0, "weighting": "cosmap"}, "p2_gamma and weighting .* choose one"),
        ({"huber_delta": 0.2}, "for loss: huber"),
        ({"huber_schedule": "constant", "loss": "l1"}, "for loss: huber"),
        ({"p2_k": 2}, "for p2_gamma"),
        ({"zero_terminal_snr": True, "prediction": "epsilon"}, "leave one of them out"),
        ({"timestep_range": [0.6, 0.4]}, "the first below the second"),
        ({"timesteps": "cosmap", "timestep_std": 1}, "timestep_std is for timesteps: logit-normal"),
        ({"timesteps": "uniform", "timestep_scale": 1}, "timestep_scale is for timesteps: mode"),
        ({"timestep_shift": "often"}, "a number above 0, or auto"),
        ({"timestep_shift": -1}, "a number above 0, or auto"),
        ({"timestep_scale": 2, "timesteps": "mode"}, "less than or equal to 1.75"),
    ],
    ids=lambda values: " ".join(values) if isinstance(values, dict) else "",
)
def test_what_cannot_go_together_is_refused(values: dict[str, Any], message: str) -> None:
    with pytest.raises(ValidationError, match=message):
        DiffusionObjective.model_validate(values)


@pytest.mark.parametrize(
    "values", [{}, {"loss": "huber", "timestep_range": [0.1, 0.9]}, {"timesteps": "mode"}]
)
def test_written_out_in_full_it_reads_back_the_same(values: dict[str, Any]) -> None:
    chosen = DiffusionObjective.model_validate(values)
    assert DiffusionObjective.model_validate(chosen.model_dump(mode="json")) == chosen


def test_fields_that_do_not_fit_are_told_without_the_whole_section() -> None:
    with pytest.raises(ValidationError) as error:
        DiffusionObjective.model_validate({"debiased": True, "p2_gamma": 1})
    (line,) = describe_errors(error.value, DiffusionObjective)
    assert line.endswith("each weigh the noise levels; choose one")
