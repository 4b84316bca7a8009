import pytest
from scipy import stats

from t2eval.paper import claims
from t2eval.paper.claims import Claim, Side, better, judge, sentence
from t2eval.stats.paired import Paired, paired_draws


def scores(right, n=40):
    return {str(i): float(i in right) for i in range(n)}


def claimed(a, b, first, second, *paper):
    return better(Side(a, first, *paper[:1]), Side(b, second, *paper[1:]), "on x")


def test_a_claim_is_tested_on_the_same_examples():
    good, bad = scores(range(30)), scores(range(10))
    claim = claimed("a", "b", good, bad)
    assert claim.text == "a scores higher than b on x"
    assert claim.difference == pytest.approx(0.5)
    assert claim.n == 40
    assert claim.p == pytest.approx(stats.binomtest(20, 20, 0.5).pvalue)
    (judged,) = judge([claim])
    assert judged.verdict == "supported"
    assert judge([claimed("b", "a", bad, good)])[0].verdict == "contradicted"
    assert judge([claimed("a", "a", good, good)])[0].verdict == "not supported"


def test_the_papers_figures_give_a_claim_its_direction():
    good, bad = scores(range(30)), scores(range(10))
    (claim,) = judge([claimed("SVF", "LoRA", good, bad, 66.67, 67.68)])
    assert claim.text == "LoRA scores higher than SVF on x"
    assert claim.verdict == "contradicted" and claim.difference == pytest.approx(-0.5)
    assert str(claim).endswith("; paper: 67.68 and 66.67)")
    as_given = [claimed("SVF", "base", good, bad, 80.81, 80.81), claimed("SVF", "base", good, bad, None, 1.0)]
    assert all(claim.verdict == "supported" and claim.text.startswith("SVF") for claim in judge(as_given))


def test_a_claim_over_draws_resamples_draws_too():
    """A way that wins by much on one draw of three, and by nothing on the others, is not shown to win; its mean by example would say so."""
    lucky, same = scores(range(40)), scores(range(20))
    runs, base = [lucky, same, same], [same]
    claim = better(Side("a", runs), Side("b", base), "with 3 examples")
    assert claim.text == "a scores higher than b with 3 examples" and claim.p == paired_draws(runs, base).p
    assert claim.difference == pytest.approx(0.5 / 3) and claim.p > 0.1
    means = {key: sum(run[key] for run in runs) / 3 for key in same}
    assert claimed("a", "b", means, same).p < 0.001


def test_claims_of_one_item_are_corrected_together():
    ps = [0.01, 0.02, 0.04]
    judged = judge([Claim(text=str(p), difference=0.1, p=p, n=9, test="t") for p in ps])
    assert [claim.adjusted for claim in judged] == pytest.approx([0.03, 0.04, 0.04])
    alone = judge(
        [Claim(text="x", difference=0.1, p=0.04, n=9, test="t"), *[Claim(text=str(i), difference=0.1, p=0.5, n=9) for i in range(3)]]
    )
    assert alone[0].verdict == "not supported"


def test_what_cannot_be_compared_is_not_supported():
    claim = claimed("a", "b", {"x": 1.0}, {"y": 1.0})
    assert claim.verdict == "not supported"
    assert "share no examples" in sentence(judge([claim]))


def test_the_sentence_reads_the_numbers():
    good, bad = scores(range(30)), scores(range(10))
    judged = judge([claimed("A", "B", good, bad), claimed("B", "A", bad, good), claimed("A", "A", good, good)])
    text = sentence([*judged, Claim(text="fewer parameters", holds=False, seen="3 of 2")])
    assert text.startswith("Of 4 claims: 1 supported, 2 contradicted, 1 not supported (McNemar exact; two-sided, Holm's correction over 3 ")
    assert "\n- Supported:\n  - A scores higher than B on x (+0.500 [" in text
    assert "- Contradicted, the opposite is the case:\n  - B scores higher than A on x (-0.500" in text
    assert "fewer parameters (3 of 2)" in text.split("Contradicted")[1].split("Not supported")[0]
    assert "- Not supported, the data do not tell the two apart:\n  - A scores higher than A on x (+0.000" in text
    measured = sentence([Claim(text="less than half", holds=True, seen="18%")])
    assert measured.startswith("Of 1 claim: 1 supported, 0 contradicted, 0 not supported (measured, without a test).")
    assert sentence([]) == "Nothing is claimed here that a test could support."


def test_a_graded_comparison_says_its_test():
    claim = claims.tested("x", Paired(0.2, 0.1, 0.3, 12, 0.001, "paired bootstrap"))
    assert "(paired bootstrap; two-sided, one comparison, p < 0.05)." in sentence(judge([claim]))
