//! Polygons as pycocotools draws them.
//!
//! Each outline is rounded to a grid of five points a pixel and walked from point to point. Where it
//! goes from the column of a pixel's center to the next, everything below changes between inside
//! and outside. Only these places are computed, so an outline costs as much as the columns it
//! crosses.

use crate::masks::planes::ColumnPlane;
use crate::masks::sample_grid::SampleGrid;

/// Polygons whose union is a mask.
#[derive(Clone, Debug)]
pub struct Polygons {
    /// x and y of each point in turn, in pixels.
    pub rings: Vec<Vec<f64>>,
}

/// Maximum number of pixel columns that the outlines of an image cross, each counted.
pub(crate) const MAX_CROSSINGS: usize = 1 << 24;

/// Points of the grid a pixel.
const GRID: i64 = 5;
/// The grid point at the center of pixel 0.
const CENTER: i64 = 2;
/// Rounding tolerance: an outline may leave its image by this many pixels.
const SLACK_PIXELS: f64 = 1.0;

impl Polygons {
    #[allow(clippy::cast_precision_loss)] // Sizes are far below 2^53.
    pub(crate) fn check(&self, (height, width): (usize, usize)) -> Result<(), String> {
        if self.rings.is_empty() {
            return Err("has no polygon; expected 1 or more".to_owned());
        }
        for (number, ring) in self.rings.iter().enumerate() {
            if ring.len() < 6 || ring.len() % 2 == 1 {
                return Err(format!(
                    "has polygon {number} of {} numbers; expected x and y of 3 points or more",
                    ring.len()
                ));
            }
            let (pairs, _) = ring.as_chunks::<2>();
            let inside =
                |at: f64, side: usize| (-SLACK_PIXELS..=side as f64 + SLACK_PIXELS).contains(&at);
            let outside = |&[x, y]: &[f64; 2]| !inside(x, width) || !inside(y, height);
            if let Some([x, y]) = pairs.iter().copied().find(|pair| outside(pair)) {
                return Err(format!(
                    "has polygon {number} with the point ({x}, {y}), outside the image of height \
                     {height} and width {width} pixels"
                ));
            }
        }
        Ok(())
    }

    /// Set the pixels of the mask. `budget` is the number of crossings that are left.
    pub(crate) fn draw(
        &self,
        grid: &SampleGrid,
        plane: &mut ColumnPlane,
        crossings: &mut Vec<u64>,
        budget: &mut usize,
    ) -> Result<(), String> {
        for ring in &self.rings {
            crossings.clear();
            outline(ring, grid.source, |at| {
                if crossings.len() == *budget {
                    return Err(format!(
                        "has outlines that, with those before, cross more than {MAX_CROSSINGS} \
                         columns of pixels"
                    ));
                }
                crossings.push(at);
                Ok(())
            })?;
            *budget -= crossings.len();
            crossings.sort_unstable();
            let (pairs, _) = crossings.as_chunks::<2>();
            for pair in pairs {
                let [start, end] = pair.map(|at| usize::try_from(at).unwrap_or(usize::MAX));
                plane.fill(grid, start..end);
            }
        }
        Ok(())
    }
}

/// Grid point of a coordinate; rounded toward zero as by a cast in C.
#[allow(clippy::cast_possible_truncation, clippy::cast_precision_loss)] // Near the image.
fn grid_point(at: f64) -> i64 {
    (GRID as f64 * at + 0.5) as i64
}

/// Call `take` with each pixel, numbered down the columns, from which on inside and outside change.
fn outline(
    ring: &[f64],
    size: (usize, usize),
    mut take: impl FnMut(u64) -> Result<(), String>,
) -> Result<(), String> {
    let (pairs, _) = ring.as_chunks::<2>();
    let point = |&[x, y]: &[f64; 2]| (grid_point(x), grid_point(y));
    let points = pairs.iter().map(point);
    let next = points.clone().cycle().skip(1);
    for (from, to) in points.zip(next) {
        edge(from, to, size, &mut take)?;
    }
    Ok(())
}

/// [`outline`] of one edge between grid points.
#[allow(
    clippy::cast_precision_loss,
    clippy::cast_possible_truncation,
    clippy::cast_possible_wrap,
    clippy::cast_sign_loss,
    clippy::similar_names
)] // Coordinates are near the image, whose sizes are far below 2^53.
fn edge(
    from: (i64, i64),
    to: (i64, i64),
    (height, width): (usize, usize),
    take: &mut impl FnMut(u64) -> Result<(), String>,
) -> Result<(), String> {
    let (across, down) = ((to.0 - from.0).abs(), (to.1 - from.1).abs());
    // Edges are walked along their longer side, from its lower end.
    let is_wide = across >= down;
    let backwards = if is_wide {
        from.0 > to.0
    } else {
        from.1 > to.1
    };
    let ((x0, y0), (x1, y1)) = if backwards { (to, from) } else { (from, to) };
    let columns = width as i64 - 1;
    // The first pixel of a column below `y`, in the column or behind it.
    let mut cross = |column: i64, y: i64| {
        let row = (y as f64 + 0.5) / GRID as f64 - 0.5;
        let row = row.clamp(0.0, height as f64).ceil() as u64;
        take(column as u64 * height as u64 + row)
    };
    if is_wide {
        if across == 0 {
            return Ok(());
        }
        let slope = (y1 - y0) as f64 / across as f64;
        let row_at = |step: i64| (y0 as f64 + slope * step as f64 + 0.5) as i64;
        // Both points of a crossing are on the edge.
        let first = (x0 - CENTER + GRID - 1).div_euclid(GRID).max(0);
        let last = (x1 - 1 - CENTER).div_euclid(GRID).min(columns);
        for column in first..=last {
            let step = column * GRID + CENTER - x0;
            cross(column, row_at(step).min(row_at(step + 1)))?;
        }
        return Ok(());
    }
    let slope = (x1 - x0) as f64 / down as f64;
    let column_at = |step: i64| (x0 as f64 + slope * step as f64 + 0.5) as i64;
    let (start, end) = (column_at(0), column_at(down));
    let (low, high) = (start.min(end), start.max(end));
    let first = (low - CENTER + GRID - 1).div_euclid(GRID).max(0);
    let last = (high - 1 - CENTER).div_euclid(GRID).min(columns);
    for column in first..=last {
        let center = column * GRID + CENTER;
        let is_past = |step: i64| {
            if start < end {
                column_at(step) > center
            } else {
                column_at(step) <= center
            }
        };
        // The first step behind the center; columns only ascend or only descend.
        let (mut before, mut past) = (0, down);
        while past - before > 1 {
            let middle = i64::midpoint(before, past);
            if is_past(middle) {
                past = middle;
            } else {
                before = middle;
            }
        }
        cross(column, y0 + before)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn drawn(rings: &[&[f64]], size: (usize, usize)) -> Vec<String> {
        let polygons = Polygons {
            rings: rings.iter().map(|ring| ring.to_vec()).collect(),
        };
        polygons.check(size).unwrap();
        let grid = SampleGrid::whole(size);
        let mut plane = ColumnPlane::default();
        plane.clear(&grid);
        let mut budget = MAX_CROSSINGS;
        polygons
            .draw(&grid, &mut plane, &mut Vec::new(), &mut budget)
            .unwrap();
        let stride = size.1.div_ceil(8);
        let mut bytes = vec![0; size.0 * stride];
        plane.write(&mut bytes, &grid);
        let row = |row: &[u8]| {
            (0..size.1)
                .map(|x| {
                    if row[x / 8] >> (7 - x % 8) & 1 == 1 {
                        '#'
                    } else {
                        '.'
                    }
                })
                .collect()
        };
        bytes.chunks(stride).map(row).collect()
    }

    #[test]
    fn rectangles_and_their_union() {
        let left: &[f64] = &[1.0, 1.0, 3.0, 1.0, 3.0, 3.0, 1.0, 3.0];
        let right: &[f64] = &[2.0, 2.0, 5.0, 2.0, 5.0, 4.0, 2.0, 4.0];
        assert_eq!(drawn(&[left], (4, 5)), [".....", ".##..", ".##..", "....."]);
        assert_eq!(
            drawn(&[left, right], (4, 5)),
            [".....", ".##..", ".####", "..###"]
        );
        let whole: &[f64] = &[-1.0, -1.0, 6.0, -1.0, 6.0, 5.0, -1.0, 5.0];
        assert_eq!(drawn(&[whole], (4, 5)), ["#####"; 4]);
        // All points are the same.
        assert_eq!(drawn(&[&[1.0; 6]], (2, 2)), [".."; 2]);
    }

    #[test]
    fn wrong_polygons_are_named() {
        let problem = |rings: &[&[f64]]| {
            let rings = rings.iter().map(|ring| ring.to_vec()).collect();
            Polygons { rings }.check((4, 5)).unwrap_err()
        };
        assert!(problem(&[]).contains("no polygon"));
        assert!(problem(&[&[0.0; 6], &[0.0; 4]]).contains("polygon 1 of 4 numbers"));
        assert!(problem(&[&[0.0; 7]]).contains("7 numbers"));
        for point in [[0.0, 5.1], [6.1, 0.0], [-1.1, 0.0], [0.0, f64::NAN]] {
            let ring = [&[0.0; 6][..], &point].concat();
            assert!(problem(&[&ring]).contains("outside the image of height 4"));
        }
    }

    #[test]
    fn outlines_that_cross_too_much_are_an_error() {
        let ring: Vec<f64> = (0..40)
            .flat_map(|at| [f64::from(at % 2 * 9), f64::from(at % 5)])
            .collect();
        let polygons = Polygons { rings: vec![ring] };
        let grid = SampleGrid::whole((5, 9));
        let mut plane = ColumnPlane::default();
        plane.clear(&grid);
        let error = polygons.draw(&grid, &mut plane, &mut Vec::new(), &mut 100);
        assert!(error.unwrap_err().contains("cross more than"));
    }
}
