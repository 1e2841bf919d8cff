"""The style that all pictures share."""

from repsim.plots.style import Figure, entitle, look


def test_titles_are_no_wider_than_their_figures():
    for width in (3.5, 4.2, 7.2, 15.1):
        with look():
            figure = Figure(figsize=(width, 3))
            entitle(
                figure,
                "Figure 5. Heads of the first block of a ViT against lower units of a ResNet\n(here: " + 9 * "word ",
            )
            figure.draw_without_rendering()
            title = figure._suptitle.get_window_extent()
        assert title.x0 >= 0 and title.x1 <= figure.bbox.width, width
        assert figure.get_suptitle().count("\n") >= 1


def test_no_title():
    figure = Figure()
    entitle(figure, None)
    assert figure.get_suptitle() == ""
