"""The loss and the noise: what becomes of kohya's options about them."""

from __future__ import annotations

from lorimer.train.from_kohya.draft import Draft
from lorimer.train.from_kohya.kinds import Kind

_STEPS = 1000  # of kohya's noise schedules


def put_objective(draft: Draft, kind: Kind) -> None:
    """Set what is computed under `objective:`."""
    given = draft.given
    draft.put("objective.caption_dropout", draft.fields.get("objective.caption_dropout", 0.0),
              "caption_dropout_rate" if "caption_dropout_rate" in given else "kohya drops none")  # fmt: skip
    if "v_parameterization" in given:
        draft.put("objective.prediction", "v_prediction", "v_parameterization")
    if "scale_v_pred_loss_like_noise_pred" in given:
        draft.put("objective.p2_gamma", 0.0, "scale_v_pred_loss_like_noise_pred")
    if "multires_noise_iterations" in given:
        discount = draft.number("multires_noise_discount", 0.3)
        draft.put("objective.pyramid_noise", discount, "multires_noise_discount")
        draft.changed.append("multires_noise_iterations: all levels are used, down to one latent")
    if {"min_timestep", "max_timestep"} & set(given):
        ends = [draft.number("min_timestep", 0) / _STEPS, draft.number("max_timestep", _STEPS) / _STEPS]
        draft.put("objective.timestep_range", ends, f"min_timestep, max_timestep, of {_STEPS}")
    _put_loss(draft)
    if kind.outside:
        _put_times(draft, kind)


def _put_loss(draft: Draft) -> None:
    kind = draft.given.get("loss_type", "l2")
    if kind == "l2":
        return
    if kind not in ("l1", "huber"):
        draft.refused.append(f"loss_type = {kind!r}: l2, l1 and huber are there")
        return
    draft.put("objective.loss", kind, "loss_type")
    if kind == "huber":
        draft.put("objective.huber_delta", draft.number("huber_c", 0.1), "huber_c")
        draft.put("objective.huber_schedule", draft.given.get("huber_schedule", "snr"), "huber_schedule")


def _put_times(draft: Draft, kind: Kind) -> None:
    """How a flow model's noise levels are drawn; what is not given is as in kohya's script for it."""
    if "clip_g" in (kind.files or {}):
        sampling, shift = "sigma", draft.number("training_shift", 1.0)
    else:
        lumina = "gemma2" in (kind.files or {})
        sampling = str(draft.given.get("timestep_sampling", "shift" if lumina else "sigma"))
        shift = draft.number("discrete_flow_shift", 6.0 if lumina else 3.0)
        _check_flux(draft, raw_by_default=lumina)
    if sampling == "sigma":
        _put_density(draft, shift)
    elif sampling in ("uniform", "sigmoid", "shift", "flux_shift"):
        density = "uniform" if sampling == "uniform" else "sigmoid"
        draft.put("objective.timesteps", density, "timestep_sampling")
        if density == "sigmoid":
            draft.put("objective.timestep_std", draft.number("sigmoid_scale", 1.0), "sigmoid_scale")
            draft.put("objective.timestep_mean", 0.0)
        shifts = {"shift": shift, "flux_shift": "auto"}
        draft.put(
            "objective.timestep_shift", shifts.get(sampling, 1.0), "timestep_sampling, discrete_flow_shift"
        )
    else:
        draft.refused.append(f"timestep_sampling = {sampling!r}: choose sigmoid, shift or flux_shift")


def _put_density(draft: Draft, shift: float) -> None:
    """`sigma`: the density that weighting_scheme names, shifted by the scheduler's own shift."""
    scheme = str(draft.given.get("weighting_scheme", "uniform"))
    density = {"logit_normal": "logit-normal", "mode": "mode"}.get(scheme, "uniform")
    draft.put("objective.timesteps", density, "weighting_scheme")
    if density == "logit-normal":
        draft.put("objective.timestep_mean", draft.number("logit_mean", 0.0), "logit_mean")
        draft.put("objective.timestep_std", draft.number("logit_std", 1.0), "logit_std")
    if density == "mode":
        draft.put("objective.timestep_scale", draft.number("mode_scale", 1.29), "mode_scale")
    if scheme in ("sigma_sqrt", "cosmap"):
        draft.put("objective.weighting", scheme.replace("_", "-"), "weighting_scheme")
    draft.put("objective.timestep_shift", shift, "the scheduler's shift")


def _check_flux(draft: Draft, raw_by_default: bool) -> None:
    given = draft.given
    if not raw_by_default:
        guidance = draft.number("guidance_scale", 3.5)
        if "guidance_scale" not in given:
            draft.changed.append(
                "guidance_scale: kohya's default of 3.5 becomes 1, which its documentation advises"
            )
        elif guidance != 1:
            draft.refused.append(
                f"guidance_scale = {guidance}: adapters learn at 1; set it to 1 or delete it"
            )
    prediction = given.get("model_prediction_type", "raw" if raw_by_default else None)
    if prediction is None:
        draft.changed.append("model_prediction_type: kohya's default of sigma_scaled becomes raw")
    elif prediction != "raw":
        draft.refused.append(
            f"model_prediction_type = {prediction!r}: only raw is there; set it, or delete it"
        )
