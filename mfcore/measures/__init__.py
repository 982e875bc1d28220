"""Arrays to numbers: scores, Dice, RankMe, intervals and tests over folds and slides, raters."""
