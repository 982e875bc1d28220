"""What is computed from arrays: scores, Dice, RankMe, intervals and tests over folds and slides, the raters."""
