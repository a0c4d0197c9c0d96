"""The flags of a small run of `train` as a command."""

TINY = (
    "--config=configs/folder.py",
    "--config.model.variant=tiny",
    "--config.model.taps=4",  # and one stage, so that there is less to trace and compile
    "--config.distillation.stages=1",
    "--config.data.max_frames=2",
    "--config.train.batch_size=8",
    "--config.eval.batch_size=8",
    "--config.train.log_every=1",
)
