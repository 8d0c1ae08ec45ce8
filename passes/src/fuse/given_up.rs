//! What a limit on stored weights gives up in a layer class: forms, what holds their tensors instead, and what they would save.

use super::budget::Group;
use super::extract::{Problem, extract};
use super::joint::JointExtraction;
use super::space::Space;
use std::collections::BTreeSet;

/// Forms of the same tensors that are stored without the limit alone.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    pub forms: Vec<usize>,
    /// Forms of these tensors that are stored within the limit.
    pub instead: Vec<usize>,
    /// By bucket, what a step of all regions would save if these forms were stored beside all others, in 1/1000 ns.
    pub saves: Vec<u64>,
}

/// What a class gives up, by tensors.
pub fn lost(space: &Space<'_>, group: &Group, before: &JointExtraction, after: &JointExtraction) -> Vec<Lost> {
    let changed: Vec<usize> = before.stored.symmetric_difference(&after.stored).copied().collect();
    let told = |forms: Vec<usize>| {
        let inputs: BTreeSet<u32> = forms.iter().flat_map(|f| space.form_inputs(*f)).collect();
        let of_these = |f: &&usize| !space.form_inputs(**f).is_disjoint(&inputs);
        let with: BTreeSet<usize> = after.stored.iter().chain(&forms).copied().collect();
        let saves = group.joint.problems.iter().map(|p| {
            let [less, more] = [&after.stored, &with].map(|stored| picos(p, stored));
            group.regions * less.saturating_sub(more)
        });
        Lost {
            saves: saves.collect(),
            instead: after.stored.iter().filter(of_these).copied().collect(),
            forms: forms.into_iter().filter(|f| before.stored.contains(f)).collect(),
        }
    };
    let groups = connected(&changed, |f| space.form_inputs(f));
    groups.into_iter().map(told).filter(|l| !l.forms.is_empty()).collect()
}

/// Time of the fastest choice that reads these forms alone; 0 if there is none.
fn picos(problem: &Problem, stored: &BTreeSet<usize>) -> u64 {
    let mut problem = problem.clone();
    for (f, form) in problem.forms.iter_mut().enumerate() {
        form.charge = stored.contains(&f).then_some(0);
    }
    extract(&problem).map_or(0, |e| e.cost.picos)
}

/// Forms that are made of the same inputs, or of the same as others that are.
fn connected(forms: &[usize], inputs: impl Fn(usize) -> BTreeSet<u32>) -> Vec<Vec<usize>> {
    let mut groups: Vec<(Vec<usize>, BTreeSet<u32>)> = vec![];
    for f in forms {
        let (mut members, mut all) = (vec![*f], inputs(*f));
        groups.retain(|(others, theirs)| {
            let apart = theirs.is_disjoint(&all);
            if !apart {
                members.extend(others);
                all.extend(theirs);
            }
            apart
        });
        members.sort_unstable();
        groups.push((members, all));
    }
    groups.into_iter().map(|(members, _)| members).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn forms_of_the_same_tensors_are_told_together() {
        let inputs = [&[0][..], &[1], &[2], &[0, 1], &[3], &[2, 4], &[4]];
        let of = |f: usize| inputs[f].iter().copied().collect();
        assert_eq!(connected(&[0, 1, 2, 3, 4], of), [vec![2], vec![0, 1, 3], vec![4]]);
        assert_eq!(connected(&[2, 6, 5], of), [vec![2, 5, 6]]);
    }
}
