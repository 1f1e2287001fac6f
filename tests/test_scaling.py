"""The page of estimates is what the code says today."""

from configs import scaling


def test_the_page_is_up_to_date():
    fresh = "run `python -m configs.scaling` and look at what changed"
    assert scaling.PAGE.read_text() == scaling.page(), fresh


def test_the_same_batch_never_speeds_up_more_than_the_chips():
    rates = []
    for chips in scaling.CHIPS:
        phases = scaling.roofline.phases(scaling.same_batch(chips), scaling._machine(chips))
        rates.append(1 / sum(p.seconds for p in phases) / chips)
    assert rates == sorted(rates, reverse=True)
