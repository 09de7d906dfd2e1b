r"""ABX of an encoder within and across speakers; nothing is trained.

python recipes/mp3s/abx.py hparams/mp3s/abx.yaml \
    --encoder=results/my_run/encoder --items=dev-clean.item \
    --audio=LibriSpeech/dev-clean --output_folder=results/my_abx

metrics.json has the errors of all layers in percent; those of `splits` are of
the best layer.
"""

from summarymixing.run.launch import run
from summarymixing.training.abx import score_encoder

if __name__ == "__main__":
    run(score_encoder)
