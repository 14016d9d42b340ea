//! Tests that the page's colours can be told apart: WCAG 2.2, level AA, light and dark.

use super::FILES;

/// Texts and their grounds: at least 4.5 to 1 (success criterion 1.4.3).
const TEXTS: &[(&str, &[&str])] = &[
    ("text", &["bg", "surface", "raised"]),
    ("muted", &["bg", "surface", "raised"]),
    ("accent", &["bg", "surface", "raised"]),
    ("on-accent", &["accent"]),
    ("on-bad", &["bad"]),
    ("ok", &["ok-bg", "surface"]),
    ("warn", &["warn-bg", "surface", "bg"]),
    ("bad", &["bad-bg", "surface"]),
    ("info", &["info-bg", "surface"]),
];

/// Borders of controls, lines of plots, bars: at least 3 to 1 (success criterion 1.4.11).
const SHAPES: &[(&str, &[&str])] = &[
    ("edge", &["bg", "surface"]),
    ("accent", &["raised"]),
    ("warn", &["raised"]),
    ("bad", &["raised"]),
    ("first", &["surface"]),
    ("second", &["surface"]),
    ("third", &["surface"]),
    ("fourth", &["surface"]),
    ("fifth", &["surface"]),
    ("sixth", &["surface"]),
];

/// The light and the dark value of a variable of the style sheet.
fn colours(name: &str) -> [[f64; 3]; 2] {
    let (.., style) = FILES.iter().find(|(file, ..)| *file == "style.css").unwrap();
    let definition = format!("--{name}: light-dark(");
    let (_, rest) = style.split_once(&definition).unwrap_or_else(|| panic!("no colour {name}"));
    let (both, _) = rest.split_once(')').unwrap();
    let (light, dark) = both.split_once(", ").unwrap();
    [light, dark].map(|text| {
        let bytes = hex::decode(text.strip_prefix('#').unwrap()).unwrap();
        [bytes[0], bytes[1], bytes[2]].map(|byte| f64::from(byte) / 255.0)
    })
}

/// The relative luminance of WCAG 2.2.
fn luminance(colour: [f64; 3]) -> f64 {
    let linear = |value: f64| {
        if value <= 0.04045 { value / 12.92 } else { ((value + 0.055) / 1.055).powf(2.4) }
    };
    let [red, green, blue] = colour.map(linear);
    0.2126 * red + 0.7152 * green + 0.0722 * blue
}

fn contrast(first: [f64; 3], second: [f64; 3]) -> f64 {
    let (first, second) = (luminance(first), luminance(second));
    (first.max(second) + 0.05) / (first.min(second) + 0.05)
}

#[test]
fn contrast_of_known_colours_is_that_of_wcag() {
    let grey = |byte: u8| [f64::from(byte) / 255.0; 3];
    assert!((contrast(grey(0), grey(255)) - 21.0).abs() < 0.001);
    assert!((contrast(grey(255), grey(0x76)) - 4.54).abs() < 0.01);
}

#[test]
fn every_text_and_shape_has_enough_contrast_in_light_and_dark() {
    let mut wrong = Vec::new();
    for (pairs, least) in [(TEXTS, 4.5), (SHAPES, 3.0)] {
        for (front, grounds) in pairs {
            for ground in *grounds {
                for (theme, (front_colour, ground_colour)) in
                    ["light", "dark"].iter().zip(colours(front).into_iter().zip(colours(ground)))
                {
                    let found = contrast(front_colour, ground_colour);
                    if found < least {
                        wrong.push(format!("{theme}: {front} on {ground} has {found:.2}, not {least}"));
                    }
                }
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
}

/// Every colour that rules use is a variable, so the test above knows it.
#[test]
fn rules_use_no_colours_but_the_variables() {
    let (.., style) = FILES.iter().find(|(file, ..)| *file == "style.css").unwrap();
    let (_, rules) = style.split_once("}").unwrap();
    let hexadecimal = |word: &str| {
        let digits = word.strip_prefix('#').unwrap_or_default().trim_end_matches([';', ',', ')']);
        matches!(digits.len(), 3 | 6 | 8) && digits.bytes().all(|byte| byte.is_ascii_hexdigit())
    };
    let found: Vec<&str> = rules.split_whitespace().filter(|word| hexadecimal(word)).collect();
    assert!(found.is_empty(), "{found:?}");
}
