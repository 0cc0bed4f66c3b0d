//! Linear sum assignment: rows and columns of a cost matrix in pairs of the least total cost.
//!
//! Shortest augmenting paths with dual variables, one row at a time, as in Jonker and Volgenant
//! (1987) and Crouse (2016), "On implementing 2D rectangular assignment algorithms". Where several
//! assignments have the least cost, the choice is that of `scipy.optimize.linear_sum_assignment`:
//! columns are scanned in its order, and of equally near ones a free column is taken first.

use crate::error::Error;

/// No row or column.
const NONE: usize = usize::MAX;

/// Assign each of the fewer of rows and columns: (rows, columns) of the pairs, ordered by row.
///
/// `costs` is row-major.
///
/// # Errors
/// [`Error::Argument`] if its length is not `rows * columns`, a cost is NaN or negative infinity, or
/// every assignment has an infinite cost.
pub fn assign(costs: &[f64], rows: usize, columns: usize) -> Result<Vec<(usize, usize)>, Error> {
    if rows.checked_mul(columns) != Some(costs.len()) {
        return Err(invalid(format!(
            "{} costs, expected {rows} x {columns}",
            costs.len()
        )));
    }
    if let Some(place) = costs
        .iter()
        .position(|cost| cost.is_nan() || *cost == f64::NEG_INFINITY)
    {
        return Err(invalid(format!(
            "row {}, column {} is {}, expected a number or infinity",
            place / columns,
            place % columns,
            costs.get(place).copied().unwrap_or(f64::NAN),
        )));
    }
    if rows <= columns {
        let columns_of = Search::new(rows, columns).run(costs)?;
        return Ok(columns_of.into_iter().enumerate().collect());
    }
    let mut turned = Vec::with_capacity(costs.len());
    for column in 0..columns {
        turned.extend(costs.iter().skip(column).step_by(columns));
    }
    let rows_of = Search::new(columns, rows).run(&turned)?;
    let pairs = rows_of.into_iter().enumerate();
    let mut pairs: Vec<(usize, usize)> = pairs.map(|(column, row)| (row, column)).collect();
    pairs.sort_unstable();
    Ok(pairs)
}

fn invalid(reason: String) -> Error {
    Error::Argument {
        name: "costs",
        reason,
    }
}

/// State of the search, of at most as many rows as columns.
struct Search {
    columns: usize,
    /// Dual variables.
    row_prices: Vec<f64>,
    column_prices: Vec<f64>,
    column_of_row: Vec<usize>,
    row_of_column: Vec<usize>,
    /// Of the path that is sought: distance of each column, and the row before it.
    distances: Vec<f64>,
    before: Vec<usize>,
    row_is_seen: Vec<bool>,
    column_is_seen: Vec<bool>,
    /// Columns that no path has reached.
    remaining: Vec<usize>,
}

// Rows and columns are below the sizes of the vectors, which `new` makes.
#[allow(clippy::indexing_slicing)]
impl Search {
    fn new(rows: usize, columns: usize) -> Self {
        Self {
            columns,
            row_prices: vec![0.0; rows],
            column_prices: vec![0.0; columns],
            column_of_row: vec![NONE; rows],
            row_of_column: vec![NONE; columns],
            distances: vec![f64::INFINITY; columns],
            before: vec![NONE; columns],
            row_is_seen: vec![false; rows],
            column_is_seen: vec![false; columns],
            remaining: Vec::with_capacity(columns),
        }
    }

    /// Assign every row; return the column of each.
    fn run(mut self, costs: &[f64]) -> Result<Vec<usize>, Error> {
        for row in 0..self.row_prices.len() {
            let (end, length) = self
                .shortest_path(costs, row)
                .ok_or_else(|| invalid("every assignment has an infinite cost".to_owned()))?;
            self.update_prices(row, length);
            self.augment(row, end);
        }
        Ok(self.column_of_row)
    }

    /// Find the shortest path from a row to a free column: its end and its length.
    fn shortest_path(&mut self, costs: &[f64], start: usize) -> Option<(usize, f64)> {
        self.remaining.clear();
        self.remaining.extend((0..self.columns).rev());
        self.row_is_seen.fill(false);
        self.column_is_seen.fill(false);
        self.distances.fill(f64::INFINITY);
        let (mut row, mut length) = (start, 0.0);
        loop {
            self.row_is_seen[row] = true;
            let own = &costs[row * self.columns..(row + 1) * self.columns];
            let price = self.row_prices[row];
            let (mut nearest, mut least) = (NONE, f64::INFINITY);
            for (place, &column) in self.remaining.iter().enumerate() {
                let reduced = length + own[column] - price - self.column_prices[column];
                if reduced < self.distances[column] {
                    self.before[column] = row;
                    self.distances[column] = reduced;
                }
                let distance = self.distances[column];
                let is_free = self.row_of_column[column] == NONE;
                #[allow(clippy::float_cmp)] // A tie.
                if distance < least || (distance == least && is_free) {
                    least = distance;
                    nearest = place;
                }
            }
            if least == f64::INFINITY {
                return None;
            }
            length = least;
            let column = self.remaining.swap_remove(nearest);
            self.column_is_seen[column] = true;
            row = self.row_of_column[column];
            if row == NONE {
                return Some((column, length));
            }
        }
    }

    fn update_prices(&mut self, start: usize, length: f64) {
        self.row_prices[start] += length;
        for row in 0..self.row_prices.len() {
            if self.row_is_seen[row] && row != start {
                self.row_prices[row] += length - self.distances[self.column_of_row[row]];
            }
        }
        for column in 0..self.columns {
            if self.column_is_seen[column] {
                self.column_prices[column] -= length - self.distances[column];
            }
        }
    }

    /// Give each row on the path its next column.
    fn augment(&mut self, start: usize, end: usize) {
        let mut column = end;
        loop {
            let row = self.before[column];
            self.row_of_column[column] = row;
            std::mem::swap(&mut self.column_of_row[row], &mut column);
            if row == start {
                return;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    #![allow(clippy::float_cmp)] // Small integers are exact.

    use super::*;

    fn total(costs: &[f64], columns: usize, pairs: &[(usize, usize)]) -> f64 {
        pairs.iter().map(|&(r, c)| costs[r * columns + c]).sum()
    }

    /// The least total cost, over all ways to give each row a column.
    fn least(costs: &[f64], rows: usize, columns: usize, used: &mut Vec<bool>, row: usize) -> f64 {
        if row == rows {
            return 0.0;
        }
        let mut best = f64::INFINITY;
        for column in 0..columns {
            if !used[column] {
                used[column] = true;
                let rest = least(costs, rows, columns, used, row + 1);
                best = best.min(costs[row * columns + column] + rest);
                used[column] = false;
            }
        }
        best
    }

    #[test]
    fn nothing_has_no_pairs() {
        for (rows, columns) in [(0, 0), (0, 3), (3, 0)] {
            assert_eq!(assign(&[], rows, columns).ok(), Some(Vec::new()));
        }
    }

    #[test]
    fn totals_are_the_least_of_all_assignments() {
        let mut state = 7_u64;
        for case in 0..200 {
            let (rows, columns) = (1 + case % 4, 1 + case / 4 % 5);
            let costs: Vec<f64> = (0..rows * columns)
                .map(|_| {
                    state = state
                        .wrapping_mul(6_364_136_223_846_793_005)
                        .wrapping_add(1);
                    // Few values, so that there are ties; some are negative.
                    f64::from(u32::try_from(state >> 61).unwrap_or(0)) - 3.0
                })
                .collect();
            let pairs = assign(&costs, rows, columns).unwrap_or_default();
            assert_eq!(pairs.len(), rows.min(columns));
            assert!(pairs.is_sorted());
            let wanted = if rows <= columns {
                least(&costs, rows, columns, &mut vec![false; columns], 0)
            } else {
                let turned: Vec<f64> = (0..columns)
                    .flat_map(|c| (0..rows).map(move |r| (r, c)))
                    .map(|(r, c)| costs[r * columns + c])
                    .collect();
                least(&turned, columns, rows, &mut vec![false; rows], 0)
            };
            assert_eq!(total(&costs, columns, &pairs), wanted, "{costs:?}");
        }
    }

    #[test]
    fn infinite_costs_are_avoided_or_refused() {
        let wall = f64::INFINITY;
        assert_eq!(
            assign(&[wall, 1.0, 0.0, 5.0], 2, 2).ok(),
            Some(vec![(0, 1), (1, 0)])
        );
        let message = assign(&[wall, 1.0, wall, 5.0], 2, 2)
            .unwrap_err()
            .to_string();
        assert!(message.contains("infinite"), "{message}");
    }

    #[test]
    fn costs_that_are_no_numbers_are_named() {
        let message = assign(&[0.0, 1.0, f64::NAN, 5.0], 2, 2)
            .unwrap_err()
            .to_string();
        assert!(message.contains("row 1, column 0 is NaN"), "{message}");
        let message = assign(&[0.0], 2, 2).unwrap_err().to_string();
        assert!(message.contains("1 costs, expected 2 x 2"), "{message}");
    }
}
