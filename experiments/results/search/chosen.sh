export EXPLORE_erm="${EXPLORE_erm:---weight-decay 0}"
export EXPLORE_entmin="${EXPLORE_entmin:---w-entropy 0.03}"
export EXPLORE_moco="${EXPLORE_moco:---w-entropy 0.3 --temperature 0.1 --momentum 0.999}"
export EXPLORE_fixmatch="${EXPLORE_fixmatch:---threshold 0.95}"
