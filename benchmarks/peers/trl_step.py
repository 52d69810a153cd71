"""Seconds per GRPO step of TRL (1.16) on the shared workload.

    FOLDER/trl/bin/python benchmarks/peers/trl_step.py --steps 8 --json trl.json

TRL's own GRPOTrainer with transformers' generate runs on the CPU; a subclass only reads the clock around the calls
that are its phases. Gradient checkpointing (on by default in TRL) is off, since no other library here recomputes.
"""

import os

os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
# Busy-waiting threads make torch several times slower where cores are shared.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")

import tempfile
import time
import warnings
from pathlib import Path

import bench_workload as workload
from bench_protocol import StepClock, finish, parse_flags, workload_dict

warnings.filterwarnings("ignore")

import torch
import transformers
import trl
from datasets import Dataset
from transformers import PreTrainedTokenizerFast, TrainerCallback
from trl import GRPOConfig, GRPOTrainer

transformers.logging.set_verbosity_error()
transformers.utils.logging.disable_progress_bar()


class TimedTrainer(GRPOTrainer):
    """GRPOTrainer with a clock around its phases."""

    clock: StepClock
    inputs_ready: tuple[float, float] = (0.0, 0.0)

    def _generate_single_turn(self, *args, **kwargs):
        completion_ids, logprobs = super()._generate_single_turn(*args, **kwargs)
        self.clock.add_response_tokens(sum(map(len, completion_ids)))
        return completion_ids, logprobs

    def _generate(self, *args, **kwargs):
        return self.clock.timed("rollout", super()._generate, *args, **kwargs)

    def _calculate_rewards(self, *args, **kwargs):
        return self.clock.timed("reward", super()._calculate_rewards, *args, **kwargs)

    def _get_per_token_logps_and_entropies(self, *args, **kwargs):
        scored = super()._get_per_token_logps_and_entropies
        if torch.is_grad_enabled():  # the policy's own pass is part of the update
            return scored(*args, **kwargs)
        return self.clock.timed("reference", scored, *args, **kwargs)

    def _prepare_inputs(self, *args, **kwargs):
        inputs = super()._prepare_inputs(*args, **kwargs)
        self.inputs_ready = time.perf_counter(), time.process_time()
        return inputs


class StepEdges(TrainerCallback):
    """Ends the update phase after the optimizer, and the step where the trainer ends it."""

    def __init__(self, trainer: TimedTrainer):
        self.trainer = trainer
        self.started = False

    def on_step_begin(self, *_, **__):
        if not self.started:
            self.started = True
            self.trainer.clock.start()

    def on_optimizer_step(self, *_, **__):
        wall, cpu = self.trainer.inputs_ready
        self.trainer.clock.add("update", time.perf_counter() - wall, time.process_time() - cpu)

    def on_step_end(self, *_, **__):
        self.trainer.clock.end_step()


def even_share_reward(completion_ids, **_):
    return [workload.even_share(ids) for ids in completion_ids]


def training_config(flags, output_dir: str) -> GRPOConfig:
    return GRPOConfig(
        output_dir=output_dir,
        per_device_train_batch_size=flags.prompts * flags.group,
        gradient_accumulation_steps=1,
        num_generations=flags.group,
        num_iterations=1,
        max_completion_length=flags.response_len,
        beta=flags.beta,
        temperature=1.0,
        learning_rate=workload.LEARNING_RATE,
        weight_decay=0.0,
        max_grad_norm=0.0,
        lr_scheduler_type="constant",
        max_steps=flags.steps,
        seed=flags.seed,
        shuffle_dataset=False,
        model_init_kwargs={"dtype": "float32"},
        bf16=False,
        fp16=False,
        use_cpu=True,
        gradient_checkpointing=False,
        dataloader_num_workers=0,
        report_to="none",
        save_strategy="no",
        logging_strategy="no",
        disable_tqdm=True,
    )


def make_trainer(flags, folder: Path) -> TimedTrainer:
    model_folder = workload.write_model_folder(flags, folder / "model")
    tokenizer = PreTrainedTokenizerFast.from_pretrained(str(model_folder))
    names = workload.words(flags.vocab)
    prompts = [" ".join(names[i] for i in ids) for step in workload.prompt_ids(flags) for ids in step]
    trainer = TimedTrainer(
        model=str(model_folder),
        reward_funcs=even_share_reward,
        args=training_config(flags, str(folder / "out")),
        train_dataset=Dataset.from_dict({"prompt": prompts}),
        processing_class=tokenizer,
    )
    trainer.clock = StepClock()
    trainer.add_callback(StepEdges(trainer))
    trainer.remove_callback(transformers.PrinterCallback)
    return trainer


def main() -> None:
    flags = parse_flags(__doc__.splitlines()[0])
    with tempfile.TemporaryDirectory() as folder:
        trainer = make_trainer(flags, Path(folder))
        trainer.train()
    # PyTorch runs eagerly here: there is no compilation to count.
    finish("trl", trl.__version__, workload_dict(flags), trainer.clock, False, flags.json)


if __name__ == "__main__":
    main()
