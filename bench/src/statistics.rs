//! Median, range and percentiles. Pure.

use serde::Serialize;

/// Median and range of a figure over all rounds.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Summary {
    pub median: f64,
    pub least: f64,
    pub most: f64,
}

/// Returns the median and the range of the finite values; `None` if no value is finite.
pub(crate) fn summary(values: impl IntoIterator<Item = f64>) -> Option<Summary> {
    let mut sorted: Vec<f64> = values.into_iter().filter(|value| value.is_finite()).collect();
    sorted.sort_by(f64::total_cmp);
    let (least, most) = (*sorted.first()?, *sorted.last()?);
    let middle = sorted.len() / 2;
    let median = if sorted.len() % 2 == 1 {
        sorted[middle]
    } else {
        f64::midpoint(sorted[middle - 1], sorted[middle])
    };
    Some(Summary { median, least, most })
}

/// Returns the median and the range of `a / b` of each round. A disturbance in a round affects both
/// servers, so it mostly cancels out.
pub(crate) fn ratio(a: &[f64], b: &[f64]) -> Option<Summary> {
    summary(a.iter().zip(b).map(|(a, b)| a / b))
}

/// Returns the value that the fraction `share` (0 to 1) of the values do not exceed. Sorts `values`.
pub(crate) fn percentile(values: &mut [f64], share: f64) -> f64 {
    values.sort_by(f64::total_cmp);
    // A fraction of the last index is a valid index.
    let index = (values.len().saturating_sub(1) as f64 * share).round() as usize;
    values.get(index).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_of_an_even_number_of_values_is_the_mean_of_the_middle_two() {
        assert_eq!(summary([4.0, 1.0, 3.0]), Some(Summary { median: 3.0, least: 1.0, most: 4.0 }));
        assert_eq!(summary([4.0, 1.0, 3.0, 2.0]).map(|s| s.median), Some(2.5));
        assert_eq!(summary([f64::NAN]), None);
    }

    #[test]
    fn ratios_are_taken_within_rounds() {
        // A disturbance doubled the cost of both servers in the second round.
        let ratio = ratio(&[1.0, 2.0, 1.0], &[2.0, 4.0, 2.0]).unwrap();
        assert_eq!((ratio.median, ratio.least, ratio.most), (0.5, 0.5, 0.5));
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let mut values: Vec<f64> = (0..=100).rev().map(f64::from).collect();
        assert_eq!(percentile(&mut values, 0.99), 99.0);
        assert_eq!(percentile(&mut values, 0.5), 50.0);
        assert!(percentile(&mut [], 0.5).is_nan());
    }
}
