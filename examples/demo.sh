#!/bin/sh
# The whole experiment on the shapes world and the shipped tiny CLIP: about three minutes on two cores.
# The same verbs run on your images and on OpenAI's CLIP; see the README.
set -eu
RUN=${RUN:-runs/demo}
PROMPTS='a photo of a {}.'

patchsae train --run "$RUN" --images shapes --split train --workers 1 \
    --expansion 8 --total-images 16000 --batch-size 32 --lr 4e-3 --warm-up-steps 50 --l1 1e-3
patchsae evaluate --run "$RUN" --split test --limit 500
patchsae extract --run "$RUN" --limit 2000 --workers 1
patchsae classes --run "$RUN"
patchsae mask --run "$RUN" --split test --limit 400 --templates "$PROMPTS"
# Adapt the CLIP to combinations of shape, colour and texture it was not trained on, compare on still others.
patchsae tinyclip --out "$RUN/adapted" --from tiny --images shapes:val --steps 60 --batch-size 32 --lr 3e-4
patchsae compare --run "$RUN" --split test --limit 300 --other-model "local-dir:$RUN/adapted" \
    --labels CLIP adapted --templates "$PROMPTS"
patchsae explain --run "$RUN" --split test --index 3 14

echo "Open $RUN/report.html in a browser."
