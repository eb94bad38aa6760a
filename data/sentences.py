"""Sentences for the built-in speech, written for this project."""

SENTENCES = tuple(
    """
The kettle began to sing before anyone had come downstairs.
A grey cat slept on the warm bonnet of the baker's van.
Please leave the blue folder on the second shelf.
We measured the height of the tide every quarter of an hour.
Her brother repairs clocks in a shop behind the station.
Nobody noticed that the window had been open all night.
The orchard gave more plums this year than we could carry.
Turn left at the chapel and follow the river for a mile.
My grandmother kept buttons of every colour in a tin.
Seven geese flew over the frozen lake at dawn.
The train to the coast leaves from platform nine.
He folded the letter twice and put it into his coat.
Fresh bread and a little salt are all you need.
The choir practises on Thursdays in the old school hall.
Rain drummed on the roof while they played cards.
It took three men and a horse to move the piano.
Could you show me how this lamp is switched off?
The museum keeps its oldest maps in a dark room.
A thin moon hung above the chimneys of the town.
She painted the garden gate a cheerful yellow.
Most of the passengers slept through the storm.
The judge asked the witness to speak more slowly.
Wool is warmer than cotton when it is wet.
They found a silver coin under the kitchen floor.
Why does the bridge shake when a lorry passes?
The puppy chewed a hole in my left shoe.
Our neighbours grow beans, onions and pale green squash.
He whistled the same four notes all afternoon.
The doctor listened to her heart and smiled.
Snow fell so thickly that the road disappeared.
A good question is worth more than a quick answer.
The ferry turns round at the island and comes back at six.
Children chased each other between the market stalls.
I have never seen a fox as bold as this one.
The engine coughed, stopped, and would not start again.
Bring an umbrella, for the clouds look heavy.
Her voice was low, and everyone leaned closer to hear.
The carpenter chose oak for the table and pine for the chairs.
On quiet evenings you can hear the weir from here.
The teacher drew a large circle on the board.
Two thirds of the jars were already empty.
He promised to write, but he never did.
The valley smelled of smoke and wet leaves.
Is there any soup left in the pot?
A sharp knife is safer than a dull one.
The old lighthouse was sold to a painter from the north.
They argued about the price of the boat until noon.
Every drawer in the desk was locked but one.
The wind changed and blew the sparks away from the barn.
She speaks four languages and dreams in two of them.
The path climbs steeply through ferns and heather.
Nothing grows in the shade of the walnut tree.
The pilot pointed out a ring of stones far below.
We ate our lunch on the steps of the library.
A stranger in a green scarf asked for the way.
The cellar stays cool even in the middle of August.
His handwriting is small, round and easy to read.
The bell rang twice, and the room fell silent.
Do you remember the name of that little village?
The bees returned to the hive before the rain.
Her suitcase was heavier than it looked.
They crossed the square without saying a word.
The printer jammed again on the very last page.
A row of poplars marks the edge of the field.
He poured the tea and forgot the milk.
The jury could not agree and went home.
Swallows nest under the eaves of the stable.
The new road cuts the journey to half an hour.
I would rather walk than wait for another bus.
The shopkeeper weighed the cherries on brass scales.
Fog rolled in from the harbour and covered the cranes.
The youngest of the sisters plays the cello.
Somebody had drawn a face in the dust on the glass.
It is colder on the bridge than in the street.
The recipe calls for six eggs and a cup of sugar.
He keeps a spare key beneath the flower pot.
The audience laughed before the joke was over.
Wide rivers make poor borders but good roads.
The nurse wrote down the time and the dose.
We could see the fire from the other shore.
A loose board creaked under his foot.
The library closes early on the last day of the month.
They planted a birch for every child in the class.
Thunder rolled along the hills for almost a minute.
The tailor measured the sleeve and shook his head.
Which of these two pictures do you prefer?
The smallest dog barked the longest.
Her answer was short, polite and quite useless.
The miller's wheel has not turned for a hundred years.
Put the eggs in last, and stir them gently.
The rope held, although it was old and frayed.
He learned to swim in a lake without a name.
Six white yachts waited outside the lock.
The radio played softly in the next room.
Frost had drawn ferns on all the panes.
No map shows the spring where the shepherds drink.
The director thanked the crew and opened a bottle.
She threaded the needle at the first attempt.
A heavy door closed somewhere below us.
The soldiers were paid in salt and cloth.
Many a bargain has turned out to be expensive.
The comet will return when we are very old.
He carved a spoon from a piece of apple wood.
The postman knows every dog in the valley by name.
Our tent leaked, so we slept in the car.
The choice between them is harder than I thought.
Bright lanterns floated down the stream.
The farmer counted his sheep and found one too many.
A quarter of the class had caught a cold.
They built the wall without any mortar.
The violin had lost its highest string.
Where the two roads meet there is an inn.
Her lecture began with a joke about vowels.
The gardener burned the leaves behind the shed.
The glass was full to the brim and did not spill.
Owls hunt along the hedge when the moon is up.
He reads the newspaper from the back to the front.
The vote was close, and they counted it three times.
A gentle slope leads down to the beach.
The last page of the diary was torn out.
""".strip().splitlines()
)
