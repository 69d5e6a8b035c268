"""How lines and points are told apart in pictures."""

# Okabe and Ito's colours, which are told apart by the colour-blind; jfly.uni-koeln.de/color.
COLOURS = ("#D55E00", "#0072B2", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
MARKERS = "os^Dv*P"
