#!/bin/sh
# The whole experiment on the shapes world and the shipped tiny CLIP: about three minutes on two free cores.
# The same verbs run on your images and on OpenAI's CLIP; see the README.
set -eu
RUN=${RUN:-runs/demo}
PROMPTS='a photo of a {}.'

echo "== 1 of 8: Train an autoencoder"
patchsae train --run "$RUN" --images shapes --split train --workers 1 \
    --expansion 8 --total-images 16000 --batch-size 32 --lr 4e-3 --warm-up-steps 50 --l1 1e-3
echo "== 2 of 8: Evaluate it"
patchsae evaluate --run "$RUN" --split test --limit 500
echo "== 3 of 8: Extract its latents"
patchsae extract --run "$RUN" --limit 2000 --workers 1
echo "== 4 of 8: Rank the latents of classes"
patchsae classes --run "$RUN"
echo "== 5 of 8: Mask them"
patchsae mask --run "$RUN" --split test --limit 400 --templates "$PROMPTS"
# Adapt the CLIP to combinations of shape, colour and texture it was not trained on, compare on still others.
echo "== 6 of 8: Adapt the CLIP"
patchsae tinyclip --out "$RUN/adapted" --from tiny --images shapes:val --steps 60 --batch-size 32 --lr 3e-4
echo "== 7 of 8: Compare both"
patchsae compare --run "$RUN" --split test --limit 300 --other-model "local-dir:$RUN/adapted" \
    --labels CLIP adapted --templates "$PROMPTS"
echo "== 8 of 8: Explain two images"
patchsae explain --run "$RUN" --split test --index 3 14

echo "Open $RUN/report.html in a browser."
