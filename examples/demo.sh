#!/bin/sh
# The whole experiment on the shapes world and the shipped tiny CLIP: about two minutes on two cores.
# The same verbs run on your images and on OpenAI's CLIP; see the README.
set -eu
RUN=${RUN:-runs/demo}

patchsae train --run "$RUN" --images shapes --split train \
    --expansion 16 --total-images 24000 --batch-size 32 --warm-up-steps 100 --l1 3e-4
patchsae extract --run "$RUN" --limit 2000
patchsae classes --run "$RUN"
patchsae mask --run "$RUN" --split test --limit 400 --templates "a photo of a {}." "a {}."
patchsae tinyclip --out "$RUN/adapted" --from tiny --images "shapes:train?style=outline" --steps 40
patchsae compare --run "$RUN" --split test --limit 400 --other-model "local-dir:$RUN/adapted" --labels CLIP adapted \
    --templates "a photo of a {}." "a {}."
patchsae explain --run "$RUN" --split test --index 3 14

echo "Open $RUN/report.html in a browser."
